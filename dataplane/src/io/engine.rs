//! Which engine the workers run on.

use std::fs;
use std::io;

use ringlane_shared::plane::Engine;
use thiserror::Error;
use tracing::warn;

use crate::sys::ring::Uring;

/// Why io_uring cannot be used: the system is at fault.
#[derive(Debug, Error)]
pub enum NoIoUring {
    /// By the administrator, for everybody or for those without a privilege.
    #[error("it is switched off: `sysctl kernel.io_uring_disabled` is {0}")]
    SwitchedOff(u8),
    /// By something about this process.
    #[error("this process may not use it ({0}): a seccomp filter, as containers have one, forbids it")]
    Forbidden(io::Error),
    /// The kernel has it not, or not all that is needed of it.
    #[error("this kernel has not all that is needed of it ({0}); Linux 6.7 has")]
    TooOld(io::Error),
    /// It needs memory that cannot be had.
    #[error("it gets no memory ({0}); see `ulimit -l` for locked memory")]
    Memory(io::Error),
    /// Anything else.
    #[error("{0}")]
    Other(io::Error),
}

impl NoIoUring {
    fn why(error: io::Error) -> Self {
        let switch = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        Self::of(error, switch.and_then(|switch| switch.trim().parse().ok()).unwrap_or(0))
    }

    fn of(error: io::Error, switched_off: u8) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) if switched_off > 0 => Self::SwitchedOff(switched_off),
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden(error),
            Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => Self::TooOld(error),
            Some(libc::ENOMEM) => Self::Memory(error),
            _ => Self::Other(error),
        }
    }
}

/// Makes a wish a fact: [`Engine::IoUring`] or [`Engine::Epoll`]. Says so when it is not what would be fastest.
pub(crate) fn choose(wanted: Engine) -> Result<Engine, NoIoUring> {
    if wanted == Engine::Epoll {
        return Ok(Engine::Epoll);
    }
    match (Uring::probe().map_err(NoIoUring::why), wanted) {
        (Ok(()), _) => Ok(Engine::IoUring),
        (Err(reason), Engine::IoUring) => Err(reason),
        (Err(reason), _) => {
            warn!(%reason, "io_uring cannot be used: the workers use epoll, which is slower");
            Ok(Engine::Epoll)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_io_uring_from_being_used_is_told_from_its_error_and_the_switch() {
        let reason = |code, switched_off| NoIoUring::of(io::Error::from_raw_os_error(code), switched_off).to_string();
        assert_eq!(reason(libc::EPERM, 2), "it is switched off: `sysctl kernel.io_uring_disabled` is 2");
        assert!(reason(libc::EPERM, 0).contains("seccomp"));
        for code in [libc::ENOSYS, libc::EINVAL] {
            assert!(reason(code, 2).contains("Linux 6.7"), "{}", reason(code, 2));
        }
        assert!(reason(libc::ENOMEM, 0).contains("ulimit -l"));
    }

    #[test]
    fn a_wish_for_epoll_is_granted_without_asking_for_io_uring() {
        assert_eq!(choose(Engine::Epoll).unwrap(), Engine::Epoll);
        assert_ne!(choose(Engine::Auto).unwrap(), Engine::Auto);
    }
}
