//! The Debian package in a throwaway machine: a root file system of its own, booted with systemd.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use towpath_testkit::servers::made;

use crate::process::{BINARY, able, wait_until};

/// A root file system, which no test writes to.
fn root() -> PathBuf {
    made("debian")
}

/// Packages the binary of the tests, as `cargo deb` does the released one.
fn package(folder: &Path, version: &str) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let notices = Command::new(workspace.join("scripts/notices"))
        .arg("target/notices")
        .current_dir(&workspace)
        .output()
        .unwrap();
    assert!(notices.status.success(), "{notices:?}");
    let target = folder.join("target");
    let binary = target.join("release/towpath");
    std::fs::create_dir_all(binary.parent().unwrap()).unwrap();
    std::fs::copy(BINARY, binary).unwrap();
    let packaged = Command::new("cargo")
        .args([
            "deb",
            "-q",
            "-p",
            "towpath-server",
            "--no-build",
            "--fast",
            "--strip",
        ])
        .args(["--deb-version", version, "--output"])
        .arg(folder.join(format!("{version}.deb")))
        .env("CARGO_TARGET_DIR", target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        packaged.status.success(),
        "{}",
        String::from_utf8_lossy(&packaged.stderr)
    );
}

/// A booted machine, which forgets everything when it ends.
struct Machine {
    nspawn: Child,
    init: String,
}

impl Machine {
    /// Boots it, with a folder of the host as `/srv` and no network but its own loopback.
    fn boot(folder: &Path) -> Self {
        let name = format!("--machine=towpath-{}", std::process::id());
        let mut nspawn = Command::new("systemd-nspawn")
            .args(["--boot", "--volatile=overlay", "--private-network", &name])
            // No manager of the host's need know it.
            .args(["--register=no", "--keep-unit", "--console=pipe"])
            .arg(format!("--directory={}", root().display()))
            .arg(format!("--bind-ro={}:/srv", folder.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let mut init = String::new();
        wait_until(
            "the machine's first process",
            Duration::from_secs(30),
            || {
                assert!(nspawn.try_wait().unwrap().is_none(), "it did not start");
                let child = std::fs::read_to_string(&children).unwrap();
                init = child.trim().to_owned();
                // Before it comes one that only makes the file system.
                let name = std::fs::read_to_string(format!("/proc/{init}/comm"));
                name.is_ok_and(|name| name == "systemd\n")
            },
        );
        let machine = Self { nspawn, init };
        wait_until("the machine", Duration::from_secs(60), || {
            machine.run("systemctl is-system-running").trim() == "running"
        });
        machine
    }

    /// The output of a command in the machine, whether it succeeds or not.
    fn run(&self, command: &str) -> String {
        let output = Command::new("nsenter")
            .args(["-a", "-t", &self.init, "/bin/sh", "-c", command])
            .output()
            .unwrap();
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        said
    }

    /// Waits until the file has these messages, one a line.
    fn wait_output(&self, messages: &[&str]) {
        wait_until("the output", Duration::from_secs(10), || {
            let file = self.run("cat /var/lib/towpath/file.log");
            file.lines()
                .map(|line| line.rsplit(' ').next().unwrap_or_default())
                .eq(messages.iter().copied())
        });
    }

    fn pid(&self) -> String {
        self.run("systemctl show -p MainPID --value towpath")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All of its processes end with its first.
        let kill = Command::new("kill").args(["-9", &self.init]).status();
        drop(kill);
        self.nspawn.kill().ok();
        self.nspawn.wait().ok();
    }
}

#[test]
fn the_package_is_installed_run_upgraded_and_purged() {
    let mut deb = Command::new("cargo");
    let can_package = deb.args(["deb", "--version"]).output();
    let can_package = can_package.is_ok_and(|output| output.status.success());
    if !able("debian", can_package && root().exists()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for version in ["0.1.0-1", "0.1.0-2"] {
        package(folder.path(), version);
    }
    let machine = Machine::boot(folder.path());
    let is = |state: &str| machine.run(&format!("systemctl is-{state} towpath"));
    let installed = machine.run("dpkg -i /srv/0.1.0-1.deb");
    assert_eq!(
        (is("enabled").trim(), is("active").trim()),
        ("disabled", "inactive"),
        "it starts on request only: {installed}"
    );
    let documents = machine.run("ls /usr/share/doc/towpath");
    for file in ["LICENSE-MIT", "THIRD-PARTY-NOTICES.txt", "towpath.cdx.json"] {
        assert!(documents.lines().any(|line| line == file), "{documents}");
    }
    // The settings of the machine, and its own user without any rights.
    machine.run("echo QUEUE_NAME=jobs >> /etc/towpath/environment");
    // The file of the operator counts where the environment says nothing.
    let file = "[ingest]\nqueue = \"of-the-file\"\n[ingest.worker]\noutput = \"/var/lib/towpath/file.log\"\n";
    machine.run(&format!("printf '{file}' > /etc/towpath/towpath.toml"));
    let started = machine.run("systemctl enable --now towpath");
    assert_eq!(is("active").trim(), "active", "{started}");
    let send = |text: &str| {
        let sent = machine.run(&format!("towpath send --data /var/lib/towpath jobs {text}"));
        assert!(sent.trim().parse::<uuid::Uuid>().is_ok(), "{sent}");
    };
    send("one");
    machine.wait_output(&["one"]);
    let owner = machine.run("stat -L -c %U /var/lib/towpath");
    assert_ne!(owner.trim(), "root");
    // Killed, it is started again.
    let first = machine.pid();
    machine.run(&format!("kill -9 {first}"));
    wait_until("a restart", Duration::from_secs(20), || {
        // In this order: once there is another process, the active one is that process.
        machine.pid() != first && is("active").trim() == "active"
    });
    send("two");
    // An upgrade replaces the process, and keeps configuration and data.
    let second = machine.pid();
    let upgraded = machine.run("dpkg -i /srv/0.1.0-2.deb");
    assert_eq!(is("active").trim(), "active", "{upgraded}");
    assert_ne!(machine.pid(), second);
    send("three");
    machine.wait_output(&["one", "two", "three"]);
    let purged = machine.run("dpkg --purge towpath");
    assert_eq!(is("active").trim(), "inactive", "{purged}");
    // Files of the operator are left to the operator.
    assert_eq!(machine.run("ls -A /etc/towpath"), "towpath.toml\n");
    assert_eq!(machine.run("ls -d /usr/bin/towpath /usr/lib/systemd/system/towpath.service /etc/systemd/system/multi-user.target.wants/towpath.service 2>/dev/null"), "");
    // Only the operator deletes messages.
    let kept = machine.run("cat /var/lib/private/towpath/file.log");
    assert_eq!(kept.lines().count(), 3, "{kept}");
    assert_eq!(machine.run("systemctl --failed --no-legend"), "");
}
