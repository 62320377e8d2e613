"""From archives to manifests: fetching, checking and packing images. It knows no dataset by name."""
