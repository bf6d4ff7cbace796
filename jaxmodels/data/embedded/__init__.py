"""The data inside the package: three emoji sets with captions, and the State of the Union addresses."""
