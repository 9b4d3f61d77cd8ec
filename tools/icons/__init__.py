"""Parts of `tools/build_icons.py`: how the embedded dataset Icons-LT is made from open icon sets."""
