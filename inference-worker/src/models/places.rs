//! Where a model is put: on the GPU with the most room that holds it, or on the CPUs. Pure, but for `Cards`, which measures.

use std::collections::BTreeSet;

use super::plan::size;
use crate::{
    config::{Config, Device},
    cuda::driver::{self, Found},
    need::Need,
};

/// The GPUs that models may be put on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cards {
    allowed: Vec<Found>,
    /// Models go on these or nowhere.
    pub(crate) demanded: bool,
}

/// A GPU with what is free of its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    /// CUDA's number of it.
    pub(crate) id: u32,
    /// Bytes nobody has taken.
    pub(crate) free_bytes: u64,
}

/// Where a model goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this GPU.
    Gpu(u32),
    /// On the CPUs, and why on no GPU, where there are any.
    Cpu(Option<String>),
}

/// What is known of the GPUs.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) demanded: bool,
    pub(crate) rooms: Vec<Room>,
    /// Those that compute no more while this process lives.
    pub(crate) lost: BTreeSet<u32>,
}

impl Cards {
    /// Looks for the GPUs that may be used, and says what will compute.
    ///
    /// # Errors
    /// A GPU is demanded or named, and cannot be used; the text says why.
    pub(crate) fn look(config: &Config) -> Result<Self, String> {
        if config.device == Device::Cpu {
            tracing::info!("chat models compute on the CPUs, as inference.device says");
            return Ok(Self::default());
        }
        let demanded = config.device == Device::Cuda;
        let found = match driver::find() {
            Ok(found) => found,
            Err(why) if demanded => return Err(format!("inference.device is \"cuda\", and no GPU can be used: {why}")),
            Err(why) => {
                tracing::info!(%why, "chat models compute on the CPUs");
                return Ok(Self::default());
            }
        };
        let known: Vec<String> = found.iter().map(|gpu| gpu.id.to_string()).collect();
        if let Some(absent) = config.gpus.iter().find(|id| found.iter().all(|gpu| gpu.id != **id)) {
            return Err(format!("inference.gpus names {absent}; there are: {}", known.join(", ")));
        }
        let allowed: Vec<Found> =
            found.into_iter().filter(|gpu| config.gpus.is_empty() || config.gpus.contains(&gpu.id)).collect();
        for gpu in &allowed {
            let (major, minor) = gpu.capability;
            tracing::info!(gpu = gpu.id, name = gpu.name, memory = size(gpu.memory as u64), capability = %format_args!("{major}.{minor}"), "chat models compute on this GPU");
        }
        Ok(Self { allowed, demanded })
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.allowed.is_empty()
    }

    /// What is free now. Takes a while: a GPU that nobody uses is woken up.
    pub(crate) fn rooms(&self) -> Vec<Room> {
        let room = |gpu: &Found| match driver::free_memory(gpu.id) {
            Ok(free) => Some(Room { id: gpu.id, free_bytes: free as u64 }),
            Err(why) => {
                tracing::warn!(gpu = gpu.id, %why, "a GPU does not say what is free");
                None
            }
        };
        self.allowed.iter().filter_map(room).collect()
    }
}

impl Places {
    /// Where a model goes; `reserved` are the bytes that models which are being read will take on a GPU.
    ///
    /// # Errors
    /// It must go on a GPU, and fits none; the text has the numbers.
    pub(crate) fn choose(&self, model: &str, need: &Need, reserved: impl Fn(u32) -> u64) -> Result<Place, String> {
        let usable = || self.rooms.iter().filter(|room| !self.lost.contains(&room.id));
        let why = if self.rooms.is_empty() {
            if !self.demanded {
                return Ok(Place::Cpu(None));
            }
            "no GPU says what is free".to_owned()
        } else if let Some(gpu) = need.gpu {
            let free = |room: &Room| room.free_bytes.saturating_sub(reserved(room.id));
            // Of equal ones the first.
            match usable().max_by_key(|room| (free(room), std::cmp::Reverse(room.id))) {
                Some(room) if gpu.total() <= free(room) => return Ok(Place::Gpu(room.id)),
                Some(room) => format!(
                    "{model} needs {} on a GPU (weights {}, {} to compute with, {} for keys and values), and {} are free on \
                     GPU {}; inference.gpu_cache_bytes_max bounds what another model takes there",
                    size(gpu.total()),
                    size(gpu.weights_bytes),
                    size(gpu.working_bytes),
                    size(gpu.cache_bytes),
                    size(free(room)),
                    room.id
                ),
                None => "every GPU was lost; start the worker anew".to_owned(),
            }
        } else {
            format!(
                "the GPU's kernels do not compute {model}: all its widths must be multiples of 8, and its heads at most 256 wide"
            )
        };
        if self.demanded { Err(why) } else { Ok(Place::Cpu(Some(why))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::need::GpuNeed;

    const GIB: u64 = 1 << 30;

    fn need(gib: u64) -> Need {
        let gpu = GpuNeed { weights_bytes: gib * GIB, working_bytes: GIB, cache_bytes: GIB };
        Need { gpu: Some(gpu), ..Need::default() }
    }

    fn places(rooms: &[(u32, u64)], demanded: bool) -> Places {
        let rooms = rooms.iter().map(|&(id, gib)| Room { id, free_bytes: gib * GIB }).collect();
        Places { demanded, rooms, lost: BTreeSet::new() }
    }

    #[test]
    fn a_model_goes_where_the_most_room_is() {
        let places = places(&[(0, 40), (1, 80), (2, 80)], false);
        assert_eq!(places.choose("a", &need(10), |_| 0), Ok(Place::Gpu(1)));
        // What is being read there counts.
        let reading = |id| if id == 1 { 50 * GIB } else { 0 };
        assert_eq!(places.choose("a", &need(10), reading), Ok(Place::Gpu(2)));
        assert_eq!(places.choose("a", &need(78), |_| 0), Ok(Place::Gpu(1)), "to the last byte");
    }

    #[test]
    fn what_fits_no_gpu_goes_on_the_cpus_or_nowhere_and_the_numbers_are_said() {
        let rooms = [(0, 40)];
        let told = "a needs 41.0 GiB on a GPU (weights 39.0 GiB, 1.0 GiB to compute with, 1.0 GiB for keys and values), and \
                    40.0 GiB are free on GPU 0; inference.gpu_cache_bytes_max bounds what another model takes there";
        let large = need(39);
        assert_eq!(places(&rooms, false).choose("a", &large, |_| 0), Ok(Place::Cpu(Some(told.to_owned()))));
        assert_eq!(places(&rooms, true).choose("a", &large, |_| 0), Err(told.to_owned()));
        let odd = places(&rooms, true).choose("odd", &Need::default(), |_| 0).unwrap_err();
        assert!(odd.contains("do not compute odd") && odd.contains("multiples of 8"), "{odd}");
        assert_eq!(places(&[], false).choose("a", &large, |_| 0), Ok(Place::Cpu(None)));
        assert!(places(&[], true).choose("a", &large, |_| 0).is_err());
    }

    #[test]
    fn a_gpu_that_was_lost_gets_no_model() {
        let mut places = places(&[(0, 40), (1, 80)], false);
        places.lost.insert(1);
        assert_eq!(places.choose("a", &need(10), |_| 0), Ok(Place::Gpu(0)));
        places.lost.insert(0);
        assert!(matches!(places.choose("a", &need(10), |_| 0), Ok(Place::Cpu(Some(why))) if why.contains("lost")));
    }

    #[test]
    fn a_gpu_that_is_demanded_and_absent_is_an_error_and_otherwise_the_cpus_compute() {
        let config = |device| Config { device, ..Config::default() };
        assert!(Cards::look(&config(Device::Cpu)).unwrap().is_empty());
        if driver::find().is_err() {
            assert!(Cards::look(&config(Device::Auto)).unwrap().is_empty());
            let why = Cards::look(&config(Device::Cuda)).unwrap_err();
            assert!(why.starts_with("inference.device is \"cuda\", and no GPU can be used: "), "{why}");
        }
    }
}
