//! What hardware a node has.

use serde::{Deserialize, Serialize};

/// The hardware of a node, as far as it could be found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Capabilities {
    /// The GPUs, in the driver's order. Empty when there is none or none could be asked.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Why `gpus` is what it is, when that needs a word ("no NVIDIA driver on this machine").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_note: Option<String>,
    /// Logical processors that this node may use.
    #[serde(default)]
    pub cpu_cores: u32,
    /// Main memory, in bytes.
    #[serde(default)]
    pub ram_total_bytes: u64,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Gpu {
    /// The driver's index: what a device mask counts by.
    pub index: u32,
    /// The product name.
    pub name: String,
    /// Device memory, in bytes.
    pub vram_total_bytes: u64,
    /// Device memory that nobody uses at the moment, in bytes.
    pub vram_free_bytes: u64,
    /// CUDA compute capability, as "9.0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
}
