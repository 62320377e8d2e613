"""From archives to manifests: fetching, checking and packing images. Nothing here knows a dataset by name."""
