//! What GPUs the machine has, asked of NVIDIA's driver.
//!
//! Without a driver the answer is an empty list with a note, never an error.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use pool_registry_types::Gpu;

use crate::replica::Changed;

/// One look at the GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuReading {
    /// The GPUs that this node may use, in the driver's order.
    pub gpus: Vec<Gpu>,
    /// Why `gpus` is what it is, when that needs a word.
    pub note: Option<String>,
}

impl GpuReading {
    /// Device memory of the GPUs in `mask`, or of all.
    pub fn total_bytes(&self, mask: Option<&[u32]>) -> u64 {
        self.masked(mask).map(|gpu| gpu.vram_total_bytes).sum()
    }

    /// Free device memory of the GPUs in `mask`, or of all.
    pub fn free_bytes(&self, mask: Option<&[u32]>) -> u64 {
        self.masked(mask).map(|gpu| gpu.vram_free_bytes).sum()
    }

    fn masked<'a>(&'a self, mask: Option<&'a [u32]>) -> impl Iterator<Item = &'a Gpu> {
        self.gpus
            .iter()
            .filter(move |gpu| mask.is_none_or(|mask| mask.contains(&gpu.index)))
    }
}

/// The GPUs of a mask: "all" is None, "none" is an empty list, else numbers between commas.
pub(crate) fn parse_mask(mask: &str) -> Option<Vec<u32>> {
    match mask.trim() {
        "all" => None,
        mask => Some(
            mask.split(',')
                .filter_map(|number| number.trim().parse().ok())
                .collect(),
        ),
    }
}

/// Whether two masks have a GPU in common.
pub(crate) fn masks_overlap(one: Option<&[u32]>, other: Option<&[u32]>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.iter().any(|gpu| other.contains(gpu)),
        (Some(some), None) | (None, Some(some)) => !some.is_empty(),
        (None, None) => true,
    }
}

/// Asks the driver. Keeps it open, because opening it takes long.
pub(crate) struct GpuWatch {
    /// Boxed: it holds a table of a few hundred functions.
    driver: Result<Box<Nvml>, String>,
    mask: Option<Vec<u32>>,
}

impl GpuWatch {
    /// Opens the driver, if there is one. Blocks for as long as the driver takes, which may be seconds.
    pub(crate) fn open(mask: Option<Vec<u32>>) -> Self {
        let driver = Nvml::init().map(Box::new).map_err(|error| match error {
            NvmlError::LibloadingError(_) => {
                "no NVIDIA driver on this machine: its library is not installed".to_owned()
            }
            NvmlError::DriverNotLoaded => {
                "no NVIDIA driver on this machine: its kernel module is not loaded".to_owned()
            }
            error => format!("no NVIDIA driver on this machine: {error}"),
        });
        Self { driver, mask }
    }

    /// Looks once. Blocks.
    pub(crate) fn read(&self) -> GpuReading {
        let nvml = match &self.driver {
            Ok(nvml) => nvml,
            Err(note) => {
                return GpuReading {
                    gpus: Vec::new(),
                    note: Some(note.clone()),
                };
            }
        };
        let count = match nvml.device_count() {
            Ok(count) => count,
            Err(error) => {
                let note = Some(format!("the NVIDIA driver does not answer: {error}"));
                return GpuReading {
                    gpus: Vec::new(),
                    note,
                };
            }
        };
        let allowed = (0..count).filter(|index| self.mask.as_ref().is_none_or(|mask| mask.contains(index)));
        let mut reading = GpuReading::default();
        for index in allowed {
            match read_one(nvml, index) {
                Ok(gpu) => reading.gpus.push(gpu),
                Err(error) => reading.note = Some(format!("GPU {index} cannot be read: {error}")),
            }
        }
        if count > 0 && reading.gpus.is_empty() && reading.note.is_none() {
            reading.note = Some(format!("none of this machine's {count} GPUs is in the mask"));
        }
        reading
    }

    /// Looks at every interval for ever and keeps `readings` up to date. Ends only when there is no driver.
    pub(crate) async fn follow(
        self,
        interval: Duration,
        readings: Arc<ArcSwap<GpuReading>>,
        changed: Arc<Changed>,
    ) {
        let mut watch = self;
        while watch.driver.is_ok() {
            tokio::time::sleep(interval).await;
            let looked = tokio::task::spawn_blocking(move || {
                let reading = watch.read();
                (watch, reading)
            });
            let Ok((back, reading)) = looked.await else { return };
            watch = back;
            if **readings.load() != reading {
                readings.store(Arc::new(reading));
                changed.set();
            }
        }
    }
}

fn read_one(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    let capability = device.cuda_compute_capability().ok();
    Ok(Gpu {
        index,
        name: device.name()?,
        vram_total_bytes: memory.total,
        vram_free_bytes: memory.free,
        compute_capability: capability.map(|capability| format!("{}.{}", capability.major, capability.minor)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_counts_only_its_own() {
        let gpu = |index, free| Gpu {
            index,
            name: "a".to_owned(),
            vram_total_bytes: 100,
            vram_free_bytes: free,
            compute_capability: None,
        };
        let reading = GpuReading {
            gpus: vec![gpu(0, 10), gpu(1, 20), gpu(2, 30)],
            note: None,
        };
        assert_eq!(reading.total_bytes(None), 300);
        assert_eq!(reading.free_bytes(Some(&[0, 2])), 40);
        assert_eq!(reading.free_bytes(Some(&[])), 0);
        assert!(
            masks_overlap(None, None)
                && masks_overlap(None, Some(&[1]))
                && masks_overlap(Some(&[0, 1]), Some(&[1]))
        );
        assert!(!masks_overlap(Some(&[]), None) && !masks_overlap(Some(&[0]), Some(&[1])));
        assert_eq!(parse_mask("all"), None);
        assert_eq!(parse_mask("none"), Some(vec![]));
        assert_eq!(parse_mask("1, 3"), Some(vec![1, 3]));
    }

    #[test]
    fn without_a_driver_there_is_a_plain_answer() {
        let reading = GpuWatch::open(None).read();
        assert!(!reading.gpus.is_empty() || reading.note.is_some_and(|note| note.contains("NVIDIA driver")));
    }
}
