//! What the kernel says of this process, under the names that all Prometheus clients use.

use std::fs;
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Figures of this process; 0 where the kernel does not say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ProcessFigures {
    /// Time its threads spent on a CPU.
    pub cpu: Duration,
    /// Memory it takes, in bytes.
    pub resident_bytes: u64,
    /// Addresses it uses, in bytes.
    pub virtual_bytes: u64,
    /// Its threads.
    pub threads: u64,
    /// Files and sockets it has open.
    pub open_files: u64,
    /// How many it may.
    pub open_files_max: u64,
    /// When it was started, since 1970.
    pub started: Duration,
}

impl ProcessFigures {
    /// Those of now.
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let booted = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self {
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            open_files_max: getrlimit(Resource::Nofile).current.unwrap_or_default(),
            ..Self::parse(&stat, &booted, clock_ticks_per_second(), page_size() as u64)
        }
    }

    /// What `/proc/self/stat` says; `booted` is `/proc/stat`, which knows since when ticks are counted.
    fn parse(stat: &str, booted: &str, ticks_per_second: u64, page_bytes: u64) -> Self {
        // The process's name, in parentheses, may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        // proc_pid_stat(5) counts from 1, and two fields stand before these.
        let field =
            |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / ticks_per_second.max(1) as f64);
        let boot = booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        Self {
            cpu: time(field(14).saturating_add(field(15))),
            threads: field(20),
            started: boot.map(|boot| Duration::from_secs(boot) + time(field(22))).unwrap_or_default(),
            virtual_bytes: field(23),
            resident_bytes: field(24).saturating_mul(page_bytes),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_whatever_the_process_is_called() {
        let stat =
            "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 5 0 1000 4096000 300 18446744073709551615";
        let figures = ProcessFigures::parse(stat, "cpu 1 2\nbtime 1700000000\n", 100, 4096);
        assert_eq!(figures.cpu, Duration::from_secs(3));
        assert_eq!(figures.threads, 5);
        assert_eq!(figures.started, Duration::from_secs(1_700_000_010));
        assert_eq!((figures.virtual_bytes, figures.resident_bytes), (4_096_000, 300 * 4096));
        assert_eq!(ProcessFigures::parse("", "", 0, 4096), ProcessFigures::default());
    }

    #[test]
    fn this_process_has_figures() {
        let figures = ProcessFigures::read();
        assert!(figures.resident_bytes > 0 && figures.threads > 0 && figures.started > Duration::ZERO, "{figures:?}");
        assert!((1..=figures.open_files_max).contains(&figures.open_files), "{figures:?}");
    }
}
