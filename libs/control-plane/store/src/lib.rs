//! Tasks, keys and the model catalog on disk.
