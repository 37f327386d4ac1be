//! What GPUs the machine has.

use pool_registry_types::Gpu;

/// One look at the GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuReading {
    /// The GPUs that this node may use, in the driver's order.
    pub gpus: Vec<Gpu>,
    /// Why `gpus` is what it is, when that needs a word.
    pub note: Option<String>,
}

impl GpuReading {
    /// Device memory of the GPUs in `mask`; an empty mask means all.
    pub fn total_bytes(&self, mask: &[u32]) -> u64 {
        self.masked(mask).map(|gpu| gpu.vram_total_bytes).sum()
    }

    /// Free device memory of the GPUs in `mask`; an empty mask means all.
    pub fn free_bytes(&self, mask: &[u32]) -> u64 {
        self.masked(mask).map(|gpu| gpu.vram_free_bytes).sum()
    }

    fn masked<'a>(&'a self, mask: &'a [u32]) -> impl Iterator<Item = &'a Gpu> {
        self.gpus
            .iter()
            .filter(move |gpu| mask.is_empty() || mask.contains(&gpu.index))
    }
}
