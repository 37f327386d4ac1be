//! The node daemon as a library: keeps pools at target and is the one door to their engines.

mod door;
mod gpu;
mod replica;
mod slots;

pub use door::{Door, DoorBody, DoorBodyError, DoorError};
pub use gpu::GpuReading;
