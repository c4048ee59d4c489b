//! What the system says about this process, read from `/proc` each time somebody looks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Memory, processor time, open files and start of this process, by the names that Prometheus clients agree on.
/// What cannot be read is left out.
#[derive(Debug, Default)]
pub(crate) struct ProcessMetrics {}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        if let Some(bytes) = resident_memory_bytes() {
            let gauge = ConstGauge::new(bytes);
            show(
                &mut encoder,
                "process_resident_memory_bytes",
                "Memory of this process in RAM, in bytes",
                &gauge,
            )?;
        }
        if let Some(files) = open_files() {
            let gauge = ConstGauge::new(files);
            show(&mut encoder, "process_open_fds", "Open file descriptors of this process", &gauge)?;
        }
        if let Some(times) = ProcessTimes::read() {
            let counter = ConstCounter::new(times.cpu_s);
            show(
                &mut encoder,
                "process_cpu_seconds",
                "Processor time of this process, in seconds",
                &counter,
            )?;
            if let Some(start_s) = times.start_s {
                let gauge = ConstGauge::new(start_s);
                let help = "Start of this process, in seconds since 1970";
                show(&mut encoder, "process_start_time_seconds", help, &gauge)?;
            }
        }
        Ok(())
    }
}

fn show(encoder: &mut DescriptorEncoder, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn resident_memory_bytes() -> Option<f64> {
    let pages: f64 = read("/proc/self/statm")?.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}

fn open_files() -> Option<f64> {
    // One of them is the directory being listed.
    std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as f64)
}

struct ProcessTimes {
    cpu_s: f64,
    start_s: Option<f64>,
}

impl ProcessTimes {
    fn read() -> Option<Self> {
        let stat = read("/proc/self/stat")?;
        // The program's name, in parentheses, may hold anything; what follows it begins with the third field.
        let (_, fields) = stat.rsplit_once(')')?;
        let field =
            |number: usize| -> Option<f64> { fields.split_whitespace().nth(number - 3)?.parse().ok() };
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let boot = || -> Option<f64> {
            let stat = read("/proc/stat")?;
            stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
        };
        Some(Self {
            cpu_s: (field(14)? + field(15)?) / ticks,
            start_s: boot().zip(field(22)).map(|(boot, start)| boot + start / ticks),
        })
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
