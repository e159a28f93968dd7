"""Made-up records and the Typst documents of many house styles, to train the built-in model on."""
