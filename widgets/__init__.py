"""The views: figures and widgets on hvcore's records, one a file."""
