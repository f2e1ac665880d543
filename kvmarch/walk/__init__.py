"""Walking the tables of a VM in an image of physical memory."""
