"""What tests are made of: machines to drive by hand, the contract suite, results."""
