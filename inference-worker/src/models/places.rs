//! Where a model is put: on the GPU with the most room, on as few as hold it together, or on the CPUs. Pure, but for `Cards`,
//! which measures.

use std::{cmp::Reverse, collections::BTreeSet, fmt};

use super::plan::size;
use crate::{
    config::{Config, Device},
    cuda::{
        driver::{self, Found},
        nccl,
        need::{GpuNeed, TOGETHER_COUNTS},
    },
    need::Need,
};

/// The GPUs that models may be put on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cards {
    allowed: Vec<Found>,
    pub(crate) how: HowGpus,
}

/// How GPUs are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HowGpus {
    /// Models go on these or nowhere.
    pub(crate) demanded: bool,
    /// How many compute a model together; 0 is as few as hold it.
    pub(crate) per_model: usize,
    /// Why several do not compute a model together, whatever it is.
    pub(crate) apart: Option<String>,
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
    /// On these GPUs, in the order of ranks.
    Gpus(Vec<u32>),
    /// On the CPUs, and why on no GPU, where there are any.
    Cpu(Option<String>),
}

/// What is known of the GPUs.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) how: HowGpus,
    pub(crate) rooms: Vec<Room>,
    /// Those that compute no more while this process lives.
    pub(crate) lost: BTreeSet<u32>,
}

impl fmt::Display for Place {
    /// `cpu`, `gpu 0` or `gpus 0,1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(_) => f.write_str("cpu"),
            Self::Gpus(ids) => {
                let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                write!(f, "gpu{} {}", if ids.len() == 1 { "" } else { "s" }, ids.join(","))
            }
        }
    }
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
        // One GPU needs no way to others.
        let apart = if allowed.len() > 1 { nccl::version().err() } else { None };
        if let Some(why) = &apart {
            tracing::warn!(why, "no model is shared by several GPUs");
        }
        Ok(Self { allowed, how: HowGpus { demanded, per_model: config.gpus_per_model, apart } })
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
    /// It must go on GPUs, and fits none; the text has the numbers.
    pub(crate) fn choose(&self, model: &str, need: &Need, reserved: impl Fn(u32) -> u64) -> Result<Place, String> {
        let chosen = match self.rooms.is_empty() {
            true if !self.how.demanded => return Ok(Place::Cpu(None)),
            true => Err("no GPU says what is free".to_owned()),
            false => self.on_gpus(model, need, reserved),
        };
        match chosen {
            Ok(gpus) => Ok(Place::Gpus(gpus)),
            Err(why) if self.how.demanded => Err(why),
            Err(why) => Ok(Place::Cpu(Some(why))),
        }
    }

    /// The GPUs with the most room, as few as hold the model or as many as are asked for.
    fn on_gpus(&self, model: &str, need: &Need, reserved: impl Fn(u32) -> u64) -> Result<Vec<u32>, String> {
        let usable = self.rooms.iter().filter(|room| !self.lost.contains(&room.id));
        let mut usable: Vec<Room> = usable
            .map(|room| Room { free_bytes: room.free_bytes.saturating_sub(reserved(room.id)), ..room.clone() })
            .collect();
        // Of equal ones the first.
        usable.sort_by_key(|room| (Reverse(room.free_bytes), room.id));
        if usable.is_empty() {
            return Err("every GPU was lost; start the worker anew".to_owned());
        }
        let mut whys = Vec::new();
        for count in self.counts(usable.len())? {
            let on = need.gpus.on(count).map_err(|why| no_kernels(model, count, why));
            match on.and_then(|need| fits(model, &need, &usable[..count])) {
                Ok(()) => {
                    let mut ids: Vec<u32> = usable[..count].iter().map(|room| room.id).collect();
                    ids.sort_unstable();
                    return Ok(ids);
                }
                Err(why) => whys.push(why),
            }
            // What no GPU computes, several do not, either.
            if need.gpus.on(1).is_err() {
                break;
            }
        }
        if self.how.per_model != 1 && usable.len() > 1 {
            whys.extend(self.how.apart.clone());
        }
        Err(whys.join("; "))
    }

    /// How many GPUs are tried, of so many that could be used.
    fn counts(&self, usable: usize) -> Result<Vec<usize>, String> {
        match self.how.per_model {
            _ if self.how.apart.is_some() => Ok(vec![1]),
            0 => Ok(TOGETHER_COUNTS.into_iter().filter(|count| *count <= usable).collect()),
            asked if asked <= usable => Ok(vec![asked]),
            asked => Err(format!("inference.gpus_per_model asks for {asked} GPUs, and {usable} can be used")),
        }
    }
}

fn no_kernels(model: &str, count: usize, why: &str) -> String {
    match count {
        1 => format!("the GPU's kernels do not compute {model}: {why}"),
        _ => format!("{count} GPUs do not compute {model} together: {why}"),
    }
}

/// Whether the part of a model that each of these GPUs has fits the one with the least room, the last.
fn fits(model: &str, need: &GpuNeed, rooms: &[Room]) -> Result<(), String> {
    let Room { id, free_bytes } = *rooms.last().expect("at least one GPU");
    if need.total() <= free_bytes {
        return Ok(());
    }
    let whose = match rooms.len() {
        1 => format!("{model} needs {} on a GPU", size(need.total())),
        count => format!("on each of {count} GPUs it needs {}", size(need.total())),
    };
    let setting =
        if rooms.len() == 1 { "; inference.gpu_cache_bytes_max bounds what another model takes there" } else { "" };
    Err(format!(
        "{whose} (weights {}, {} to compute with, {} for keys and values), and {} are free on GPU {id}{setting}",
        size(need.weights_bytes),
        size(need.working_bytes),
        size(need.cache_bytes),
        size(free_bytes),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::need::GpuNeeds;

    const GIB: u64 = 1 << 30;

    /// So much on one GPU, and the shared part of its weights on each of several.
    fn need(gib: u64) -> Need {
        let on =
            |count: u64| Ok(GpuNeed { weights_bytes: gib * GIB / count, working_bytes: GIB, cache_bytes: GIB / count });
        Need { gpus: GpuNeeds::made_up([1, 2, 4, 8].map(on).into()), ..Need::default() }
    }

    fn places(rooms: &[(u32, u64)], demanded: bool) -> Places {
        let rooms = rooms.iter().map(|&(id, gib)| Room { id, free_bytes: gib * GIB }).collect();
        Places { how: HowGpus { demanded, ..HowGpus::default() }, rooms, lost: BTreeSet::new() }
    }

    fn on(gpus: &[u32]) -> Result<Place, String> {
        Ok(Place::Gpus(gpus.to_vec()))
    }

    #[test]
    fn a_model_goes_where_the_most_room_is() {
        let places = places(&[(0, 40), (1, 80), (2, 80)], false);
        assert_eq!(places.choose("a", &need(10), |_| 0), on(&[1]));
        // What is being read there counts.
        let reading = |id| if id == 1 { 50 * GIB } else { 0 };
        assert_eq!(places.choose("a", &need(10), reading), on(&[2]));
        assert_eq!(places.choose("a", &need(78), |_| 0), on(&[1]), "to the last byte");
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
        assert_eq!(odd, "the GPU's kernels do not compute odd: nothing is known of its shape");
        assert_eq!(places(&[], false).choose("a", &large, |_| 0), Ok(Place::Cpu(None)));
        assert!(places(&[], true).choose("a", &large, |_| 0).is_err());
    }

    #[test]
    fn a_model_that_fits_no_single_gpu_is_shared_by_as_few_as_hold_it() {
        let four = places(&[(0, 40), (1, 30), (2, 44), (3, 42)], true);
        assert_eq!(four.choose("a", &need(42), |_| 0), on(&[2]), "one is enough");
        assert_eq!(four.choose("a", &need(43), |_| 0), on(&[2, 3]), "the two with the most room");
        assert_eq!(four.choose("a", &need(80), |_| 0), on(&[2, 3]), "to the last byte");
        assert_eq!(four.choose("a", &need(84), |_| 0), on(&[0, 1, 2, 3]), "the next count is four");
        // What is being read there counts.
        let reading = |id| if id == 3 { 20 * GIB } else { 0 };
        assert_eq!(four.choose("a", &need(70), reading), on(&[0, 2]));
        let told = four.choose("a", &need(200), |_| 0).unwrap_err();
        let starts = "a needs 202.0 GiB on a GPU (weights 200.0 GiB, 1.0 GiB to compute with, 1.0 GiB for keys and values), \
                      and 44.0 GiB are free on GPU 2; inference.gpu_cache_bytes_max bounds";
        assert!(told.starts_with(starts), "{told}");
        let each = "; on each of 2 GPUs it needs 101.5 GiB (weights 100.0 GiB, 1.0 GiB to compute with, 512.0 MiB for keys \
                    and values), and 42.0 GiB are free on GPU 3; on each of 4 GPUs it needs 51.2 GiB";
        assert!(told.contains(each), "{told}");
        assert!(told.ends_with("and 30.0 GiB are free on GPU 1"), "{told}");
    }

    #[test]
    fn as_many_gpus_share_a_model_as_are_asked_for() {
        let asked = |per_model| {
            let mut four = places(&[(0, 40), (1, 41), (2, 42), (3, 43)], false);
            four.how.per_model = per_model;
            four
        };
        assert_eq!(asked(1).choose("a", &need(10), |_| 0), on(&[3]));
        assert_eq!(asked(2).choose("a", &need(10), |_| 0), on(&[2, 3]));
        assert_eq!(asked(4).choose("a", &need(10), |_| 0), on(&[0, 1, 2, 3]));
        let told = "inference.gpus_per_model asks for 8 GPUs, and 4 can be used";
        assert_eq!(asked(8).choose("a", &need(10), |_| 0), Ok(Place::Cpu(Some(told.to_owned()))));
        // One that is asked for and too small is not helped by others.
        let Ok(Place::Cpu(Some(told))) = asked(1).choose("a", &need(60), |_| 0) else { panic!("it fits no GPU") };
        assert!(!told.contains("on each of"), "{told}");
    }

    #[test]
    fn a_model_that_cannot_be_cut_and_gpus_that_do_not_reach_each_other_are_told_apart() {
        let mut two = places(&[(0, 40), (1, 40)], true);
        let one = GpuNeed { weights_bytes: 60 * GIB, working_bytes: GIB, cache_bytes: GIB };
        let uncut = "3 heads cannot be shared by 2 ranks".to_owned();
        let uncut = Need { gpus: GpuNeeds::made_up(vec![Ok(one), Err(uncut)]), ..Need::default() };
        let told = two.choose("a", &uncut, |_| 0).unwrap_err();
        assert!(told.ends_with("; 2 GPUs do not compute a together: 3 heads cannot be shared by 2 ranks"), "{told}");
        two.how.apart = Some(nccl::NO_NCCL.to_owned());
        let told = two.choose("a", &need(60), |_| 0).unwrap_err();
        assert!(told.starts_with("a needs 62.0 GiB on a GPU") && told.ends_with(nccl::NO_NCCL), "{told}");
        // What one GPU holds goes on one, even where more are asked for.
        two.how.per_model = 2;
        assert_eq!(two.choose("a", &need(30), |_| 0), on(&[0]));
        // Where one is asked for, what others lack is of no interest.
        two.how.per_model = 1;
        let told = two.choose("a", &need(60), |_| 0).unwrap_err();
        assert!(!told.contains("NCCL"), "{told}");
    }

    #[test]
    fn a_place_is_named_for_people() {
        let named = [Place::Cpu(None), Place::Gpus(vec![0]), Place::Gpus(vec![0, 1])].map(|place| place.to_string());
        assert_eq!(named, ["cpu", "gpu 0", "gpus 0,1"]);
    }

    #[test]
    fn a_gpu_that_was_lost_gets_no_model() {
        let mut places = places(&[(0, 40), (1, 80)], false);
        places.lost.insert(1);
        assert_eq!(places.choose("a", &need(10), |_| 0), on(&[0]));
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
