//! What the service manager hears from us (`sd_notify(3)`). Without one, every function here does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// The node is up: interface, routes and listeners are in place. `status` is for `systemctl status`.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The node has begun to take everything down.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// How often [`watchdog`] must be called from the control loop, if the service manager watches: half of what it
/// tolerates, as its manual advises.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|interval| !interval.is_zero())
}

/// The control loop is alive.
pub(crate) fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot talk to the service manager");
    }
}

/// A line break would end the status and begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    const INSIDE: &str = "RINGLANE_TEST_INSIDE_SERVICE";

    /// The environment of a process cannot be changed safely, so the test runs again as a child that has one.
    #[test]
    fn a_service_manager_hears_ready_status_watchdog_and_stopping() {
        if std::env::var_os(INSIDE).is_some() {
            assert_eq!(watchdog_interval(), Some(Duration::from_secs(15)));
            ready("2 peers\nREADY=0");
            watchdog();
            stopping();
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "notify::tests::a_service_manager_hears_ready_status_watchdog_and_stopping"])
            .env(INSIDE, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "30000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

        let mut buffer = [0; 256];
        let mut heard =
            || manager.recv(&mut buffer).map(|bytes| String::from_utf8_lossy(&buffer[..bytes]).into_owned());
        assert_eq!(heard().unwrap(), "READY=1\nSTATUS=2 peers READY=0\n");
        assert_eq!(heard().unwrap(), "WATCHDOG=1\n");
        assert_eq!(heard().unwrap(), "STOPPING=1\nSTATUS=stopping\n");
        assert!(heard().is_err());
    }
}
