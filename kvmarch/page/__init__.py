"""A page to look at: results as plain data, and one file of HTML that shows them."""
