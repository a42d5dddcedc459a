"""Language models as data and pure functions: config in, `Model` out."""
