//! Everything that is read from a model folder: configuration, weights, tokenizer, chat template
