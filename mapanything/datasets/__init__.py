"""OPV2V as torch data sets: one vehicle or several, cropped, resized and augmented views with matrices that stay right."""
