//! The control plane: takes tasks, decides where they run, streams answers.
