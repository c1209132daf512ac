"""The same work by cvm_migrate and by what users would run instead, on the same disks in one run."""
