//! What the machine has and what this process took of it: CPU seconds, peak memory, free memory, free disk.
//!
//! Figures for people and for the planner; no result depends on them.

use std::path::{Path, PathBuf};

/// Mount point of the control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A limit as large as this is no limit (version 1 says 2⁶³ rounded down to pages).
const NO_LIMIT: u64 = 1 << 60;

/// CPU seconds of this process so far, all threads, user and system.
pub fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Peak resident memory of this process in MiB; 0 where the system does not tell.
pub fn peak_rss_mib() -> f64 {
    kib_of("/proc/self/status", "VmHWM:").unwrap_or(0) as f64 / 1024.0
}

/// Memory that new work can take without swapping: the smaller of what the system calls available and what is left of the
/// process's control groups. None where the system does not tell.
pub fn ram_available_bytes() -> Option<u64> {
    let system = kib_of("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024);
    let groups =
        std::fs::read_to_string("/proc/self/cgroup").map_or(None, |text| cgroup_left(&text, Path::new(CGROUPS)));
    match (system, groups) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Bytes that this user may still write where `path` is or will be. None where the system does not tell.
pub fn disk_available_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|p| p.exists()).map_or(Path::new("."), |p| p);
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let found = rustix::fs::statvfs(existing).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

fn kib_of(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").trim().parse().ok()
}

/// What is left in the control groups that `membership` (the text of `/proc/self/cgroup`) names, below `root`.
fn cgroup_left(membership: &str, root: &Path) -> Option<u64> {
    let mut left: Option<u64> = None;
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (controllers, path) = (parts.nth(1)?, parts.next()?);
        let (base, names) = match controllers {
            "" => (root.to_path_buf(), ["memory.max", "memory.current"]),
            list if list.split(',').any(|c| c == "memory") => {
                (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"])
            }
            _ => continue,
        };
        // In a container the named folder may not be visible; then the root is the container's own group.
        let own: PathBuf = base.join(path.trim_start_matches('/'));
        for folder in own.ancestors().take_while(|folder| folder.starts_with(&base)) {
            if let Some(here) = left_in(folder, names) {
                left = Some(left.map_or(here, |left| left.min(here)));
            }
        }
    }
    left
}

fn left_in(folder: &Path, [limit, usage]: [&str; 2]) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(limit).filter(|&bytes| bytes < NO_LIMIT)?;
    // Pages of files that nobody uses at the moment are given back before anything is killed.
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let idle = stat.lines().find_map(|line| {
        let rest = line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("total_inactive_file "))?;
        rest.trim().parse::<u64>().ok()
    });
    let used = number(usage)?.saturating_sub(idle.unwrap_or(0));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_cpu_time_and_memory_is_seen() {
        let before = cpu_seconds();
        let mut x = 1.0f64;
        while cpu_seconds() - before < 0.02 {
            x = (x * 1.000_1).sin();
        }
        assert!(x.is_finite() && cpu_seconds() > before);
        assert!(peak_rss_mib() > 1.0);
        assert!(ram_available_bytes().is_some_and(|bytes| bytes > 1 << 20));
        let dir = tempfile::tempdir().unwrap();
        let free = disk_available_bytes(&dir.path().join("not/there/yet")).unwrap();
        assert!(free > 1 << 20);
    }

    #[test]
    fn the_tightest_group_counts() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a/b");
        std::fs::create_dir_all(&own).unwrap();
        let write = |folder: &Path, name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write(&own, "memory.max", "max\n");
        write(&own, "memory.current", "7\n");
        write(&dir.path().join("a"), "memory.max", "1000\n");
        write(&dir.path().join("a"), "memory.current", "600\n");
        write(&dir.path().join("a"), "memory.stat", "anon 500\ninactive_file 100\n");
        assert_eq!(cgroup_left("0::/a/b\n", dir.path()), Some(500));
        assert_eq!(cgroup_left("3:cpu:/x\n", dir.path()), None);
        let first = dir.path().join("memory/a");
        std::fs::create_dir_all(&first).unwrap();
        write(&first, "memory.limit_in_bytes", "300");
        write(&first, "memory.usage_in_bytes", "50");
        assert_eq!(cgroup_left("4:memory,pids:/a\n", dir.path()), Some(250));
        write(&first, "memory.limit_in_bytes", "9223372036854771712");
        assert_eq!(cgroup_left("4:memory:/a\n", dir.path()), None);
    }
}
