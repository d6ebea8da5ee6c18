"""Public data sets, turned into triplets to train on."""
