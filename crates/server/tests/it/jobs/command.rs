//! `towpath job`: a program for each job.

use super::*;

#[test]
fn a_program_runs_for_each_job_and_its_exit_code_decides() {
    let site = Site::embedded();
    let mut api = site.api();
    let settings = json!({"retry": {"attempts": 2, "first": "10ms", "max": "20ms"}});
    api.create("emails", &settings);
    let script = "body=$(cat); echo \"$body $TOWPATH_MESSAGE_ATTEMPT $TOWPATH_MESSAGE_HEADER_TENANT\" >> done.txt; case $body in bad) echo 'no address' >&2; exit 65;; fails) echo busy >&2; exit 1;; esac";
    std::fs::write(site.world.folder.join("job.sh"), script).unwrap();
    let output = site.world.folder.join("done.txt");
    let start = || {
        let worker = ["job", "worker", "--queue", "emails", "--concurrency", "3"];
        site.world
            .spawn(&[&worker[..], &["--exec", "sh job.sh"]].concat())
    };
    let worker = start();
    api.send("emails", &[("towpath-header-tenant", "acme")], "fine");
    site.world.ok(&["job", "send", "emails", "bad"]);
    site.world.ok(&["job", "send", "emails", "fails"]);
    wait_until("the jobs", Duration::from_secs(30), || {
        let stats = api.stats("emails");
        stats["acked"] == 1 && stats["dead"] == 2
    });
    let text = std::fs::read_to_string(&output).unwrap();
    let mut lines: Vec<_> = { text.lines() }
        .map(|line| line.trim().to_owned())
        .collect();
    lines.sort();
    assert_eq!(lines, ["bad 1", "fails 1", "fails 2", "fine 1 acme"]);
    let letters = api.dead_letters("emails");
    let reasons: BTreeSet<_> = { letters.iter() }
        .map(|letter| letter["reason"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        reasons.iter().any(|reason| reason.contains("no address")),
        "{reasons:?}"
    );
    assert!(
        reasons.iter().any(|reason| reason.contains("busy")),
        "{reasons:?}"
    );
    assert!(
        site.world
            .ok(&["job", "status", "emails"])
            .contains("emails")
    );

    let (status, log, _) = worker.stop();
    assert!(status.success(), "{log}");
    let refused = site
        .world
        .run(&["job", "worker", "--queue", "nothing", "--exec", "true"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no queue `nothing`"));
}

#[test]
fn jobs_of_a_killed_worker_run_again_and_a_long_one_keeps_its_lease() {
    let site = Site::embedded();
    let mut api = site.api();
    api.create("slow", &Value::Null);
    let output = site.world.folder.join("done.txt");
    let exec = "sleep 2; cat >> done.txt; echo \" $TOWPATH_MESSAGE_ATTEMPT\" >> done.txt";
    let start = || {
        let worker = [
            "job", "worker", "--queue", "slow", "--lease", "1s", "--exec", exec,
        ];
        site.world.spawn(&worker)
    };
    let worker = start();
    api.send("slow", &[], "work");
    wait_until("the lease", Duration::from_secs(20), || {
        api.stats("slow")["leased"] == 1
    });
    worker.kill();
    // Another worker would take the job when its lease is not renewed.
    let workers = [start(), start()];
    wait_until("the job", Duration::from_secs(30), || {
        api.stats("slow")["acked"] == 1
    });
    let text = std::fs::read_to_string(&output).unwrap();
    // A program outlives its killed worker, and may have written too.
    assert!(text.contains("work 2\n"), "{text}");
    assert!(!text.contains("work 3"), "{text}");
    drop(workers);
}
