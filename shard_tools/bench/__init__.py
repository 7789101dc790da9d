"""`hnpretrain bench negatives`: our negatives beside those of the recipes that users take today."""
