"""Documents over HTTP: a record in, Typst that compiles out; and OpenAI's form for clients that speak it."""
