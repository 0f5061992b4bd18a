//! What the machine offers the workers: the CPUs this process may use, and its kernel's version.

use ringlane_shared::limits::CORE_MAX;
use rustix::thread::{CpuSet, sched_getaffinity};

const _: () = assert!(CORE_MAX as usize + 1 == CpuSet::MAX_CPU);

/// The CPUs this process may use, ascending; `None` where the kernel does not say, as with more than 1024 of them.
pub(crate) fn allowed_cores() -> Option<Vec<u16>> {
    let allowed = sched_getaffinity(None).ok()?;
    Some((0..=CORE_MAX).filter(|core| allowed.is_set(usize::from(*core))).collect())
}

/// The kernel's release, as `uname -r` prints it.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether a kernel of this release has drivers that spoil trains of equal datagrams, which nothing shows at run time:
/// Linux 7.0-rc1 to 7.1.4. Distributions may have repaired theirs; then the sentinel costs a datagram a train for
/// nothing.
pub(crate) fn needs_sentinel(release: &str) -> bool {
    // "7.1.4-arch1-1": three numbers, and what follows the last of them.
    let mut parts = release.splitn(3, '.').map(|part| {
        let digits = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse::<u32>().ok()
    });
    match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten()) {
        (Some(7), Some(0), _) => true,
        (Some(7), Some(1), patch) => patch.unwrap_or(0) <= 4,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_from_7_0_rc1_to_7_1_4_need_the_sentinel_and_no_others() {
        for release in [
            "7.0.0-rc1",
            "7.0.0",
            "7.0",
            "7.0.0-14-generic",
            "7.0.99",
            "7.1.0-rc5+",
            "7.1-rc2",
            "7.1",
            "7.1.4",
            "7.1.4-arch1-1",
            "7.1.4.el11.x86_64",
        ] {
            assert!(needs_sentinel(release), "{release}");
        }
        for release in [
            "6.18.44",
            "6.19.0-rc8",
            "6.7.12",
            "7.1.5",
            "7.1.5-rc1",
            "7.1.40",
            "7.10.0",
            "7.2.0-rc1",
            "17.0.1",
            "70.1.2",
            "8.0.0",
            "7",
            "",
            "next",
            "7.x.1",
            "99999999999.0.0",
        ] {
            assert!(!needs_sentinel(release), "{release}");
        }
    }

    #[test]
    fn this_process_may_use_a_core_and_its_kernel_has_a_version() {
        let cores = allowed_cores().expect("a machine of at most 1024 CPUs");
        assert!(!cores.is_empty() && cores.is_sorted());
        assert!(kernel_release().contains('.'));
    }
}
