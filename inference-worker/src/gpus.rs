//! The GPUs of this machine, asked through the driver's library (NVML), which is found when the worker runs or not at all.
//!
//! Nothing is told that was not measured: without a GPU there is no metric, and a value that the driver does not give is
//! missing, not zero.

use std::time::Duration;

use nvml_wrapper::{Nvml, error::NvmlError};
use prometheus::core::{Atomic, GenericGaugeVec};
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use runtime::Runtime;
use schemas::models::Gpu;

use crate::models::Models;

/// How often they are asked: the driver's own window for utilisation is up to a second.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// Why no GPU can be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no driver.
    #[error("no NVIDIA driver is installed (libnvidia-ml.so.1 is not found)")]
    NoDriver,
    /// The driver is there and does not answer.
    #[error("the NVIDIA driver does not answer: {0}")]
    Driver(#[source] NvmlError),
    /// It answers that there is none.
    #[error("the NVIDIA driver knows no GPU")]
    NoGpu,
}

/// What asks the GPUs.
pub struct Gpus(Nvml);

impl Gpus {
    /// Opens the driver's library.
    ///
    /// # Errors
    /// There is no driver, it does not answer, or it knows no GPU.
    pub fn open() -> Result<Self, Error> {
        let nvml = Nvml::init().map_err(|error| match error {
            NvmlError::LibloadingError(_) => Error::NoDriver,
            error => Error::Driver(error),
        })?;
        match nvml.device_count().map_err(Error::Driver)? {
            0 => Err(Error::NoGpu),
            _ => Ok(Self(nvml)),
        }
    }

    /// All GPUs as they are now. Takes milliseconds.
    #[must_use]
    pub fn sample(&self) -> Vec<Gpu> {
        let count = self.0.device_count().unwrap_or(0);
        (0..count).filter_map(|id| self.one(id).ok()).collect()
    }

    fn one(&self, id: u32) -> Result<Gpu, NvmlError> {
        let device = self.0.device_by_index(id)?;
        let memory = device.memory_info().ok();
        Ok(Gpu {
            id,
            name: device.name()?,
            utilization: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
            memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        })
    }
}

/// Samples the GPUs into metrics and the worker's entry until the soft token falls. Without any it says so once.
pub(crate) fn watch(runtime: &Runtime, models: &Models) {
    let (soft, registry, models) = (runtime.tasks.soft(), runtime.metrics.clone(), models.clone());
    runtime.tasks.spawn(async move {
        // Opening the library reads the disk and may wait for the driver.
        let opened = tokio::task::spawn_blocking(|| Gpus::open().map(|gpus| (gpus.sample(), gpus))).await;
        let (mut sample, mut gpus) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return tracing::info!(%error, "no GPUs are measured"),
            Err(error) => return tracing::warn!(%error, "no GPUs are measured"),
        };
        let mut metrics = match Metrics::register(&registry) {
            Ok(metrics) => metrics,
            Err(error) => return tracing::warn!(%error, "GPUs are not measured"),
        };
        loop {
            metrics.set(&sample);
            models.tell_gpus(sample).await;
            if soft.run_until_cancelled(tokio::time::sleep(SAMPLE_EVERY)).await.is_none() {
                return;
            }
            match tokio::task::spawn_blocking(move || (gpus.sample(), gpus)).await {
                Ok(next) => (sample, gpus) = next,
                Err(error) => return tracing::warn!(%error, "GPUs are no longer measured"),
            }
        }
    });
}

struct Metrics {
    utilization: GaugeVec,
    memory_used: IntGaugeVec,
    memory_total: IntGaugeVec,
    /// The GPUs that are shown.
    known: Vec<u32>,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let bytes = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["gpu_id"]);
        let utilization = Opts::new("vlinders_gpu_utilization", "Part of the time in which the GPU computed, 0 to 1");
        let this = Self {
            utilization: GaugeVec::new(utilization, &["gpu_id"])?,
            memory_used: bytes("vlinders_gpu_memory_used_bytes", "Memory of the GPU in use")?,
            memory_total: bytes("vlinders_gpu_memory_total_bytes", "Memory of the GPU")?,
            known: Vec::new(),
        };
        registry.register(Box::new(this.utilization.clone()))?;
        registry.register(Box::new(this.memory_used.clone()))?;
        registry.register(Box::new(this.memory_total.clone()))?;
        Ok(this)
    }

    /// Shows these values and no others.
    fn set(&mut self, sample: &[Gpu]) {
        let gone = std::mem::replace(&mut self.known, sample.iter().map(|gpu| gpu.id).collect());
        for id in gone.into_iter().filter(|id| sample.iter().all(|gpu| gpu.id != *id)) {
            show(&self.utilization, id, None);
            show(&self.memory_used, id, None);
            show(&self.memory_total, id, None);
        }
        let whole = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for gpu in sample {
            show(&self.utilization, gpu.id, gpu.utilization);
            show(&self.memory_used, gpu.id, gpu.memory_used_bytes.map(whole));
            show(&self.memory_total, gpu.id, gpu.memory_total_bytes.map(whole));
        }
    }
}

fn show<N: Atomic>(all: &GenericGaugeVec<N>, id: u32, value: Option<N::T>) {
    let id = id.to_string();
    match value {
        Some(value) => all.with_label_values(&[&id]).set(value),
        // An error says that it was not shown.
        None => drop(all.remove_label_values(&[&id])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn a_value_that_was_not_measured_is_missing_and_one_that_vanishes_goes() {
        let registry = Registry::new();
        let mut metrics = Metrics::register(&registry).unwrap();
        let gpu = |id, utilization| Gpu {
            id,
            name: "GPU".into(),
            utilization,
            memory_used_bytes: Some(7),
            memory_total_bytes: Some(9),
        };
        metrics.set(&[gpu(0, Some(0.25)), gpu(1, None)]);
        let text = shown(&registry);
        assert!(text.contains("vlinders_gpu_utilization{gpu_id=\"0\"} 0.25"), "{text}");
        assert!(!text.contains("vlinders_gpu_utilization{gpu_id=\"1\"}"), "{text}");
        assert!(text.contains("vlinders_gpu_memory_used_bytes{gpu_id=\"1\"} 7"), "{text}");
        metrics.set(&[]);
        assert!(!shown(&registry).contains("gpu_id"), "{}", shown(&registry));
    }

    #[test]
    fn a_machine_without_a_driver_says_so_and_one_with_it_says_what_it_has() {
        match Gpus::open() {
            Err(error) => assert!(error.to_string().contains("NVIDIA driver"), "{error}"),
            Ok(gpus) => {
                let sample = gpus.sample();
                assert!(!sample.is_empty() && sample.iter().all(|gpu| !gpu.name.is_empty()), "{sample:?}");
                assert!(sample.iter().all(|gpu| gpu.utilization.is_none_or(|part| (0.0..=1.0).contains(&part))));
            }
        }
    }
}
