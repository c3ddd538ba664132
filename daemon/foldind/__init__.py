"""The Foldin daemon: folds fine-tuned checkpoints into one merged model, one at a time, in constant memory."""
