"""Parts of `tools/build_icons.py`: how the embedded data set Icons-LT is made out of open icon sets."""
