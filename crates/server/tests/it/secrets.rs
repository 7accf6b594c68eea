//! Secrets stay where they are: modes of files, folders of other users, and what may decide where a token goes.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::mpsc;
use std::time::Duration;

use crate::process::{World, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Files below a folder, and the folder, with more rights for others than `allowed` gives each name.
fn open_to_others(folder: &Path, allowed: &dyn Fn(&Path) -> u32) -> Vec<String> {
    let mut open = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(path) = folders.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let mode = found.mode() & 0o777;
        if mode & 0o077 & !allowed(&path) != 0 {
            open.push(format!("{} {mode:o}", path.display()));
        }
        if found.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            folders.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    open
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn files_are_their_owners_only_whatever_the_umask() {
    let mut world = World::new();
    world.set_umask("000");
    // A store of release 0.1.0 left its folders open.
    fs::create_dir_all(world.data().join("log")).unwrap();
    set_mode(&world.data(), 0o700);
    set_mode(&world.data().join("log"), 0o755);
    let running = world.up();
    world.ok(&["send", "mail", "hello"]);
    let client = || world.client();
    let json = [("content-type", "application/json")];
    assert_eq!(client().post("/enqueue", &[], b"hello").status, 200);
    let user = br#"{"email":"a@example.com","name":"A"}"#;
    assert_eq!(client().post("/api/users", &json, user).status, 201);
    wait_until("the output", SOON, || world.output().exists());
    world.ok(&["key", "new", "test", "--scope", "ingest:write"]);
    let backup = world.folder.join("backups/one");
    world.ok(&["backup", backup.to_str().unwrap()]);
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    let restored = world.folder.join("restored");
    world.ok(&[
        "restore",
        backup.to_str().unwrap(),
        "--data",
        restored.to_str().unwrap(),
    ]);
    let output = world.output();
    let allowed = |path: &Path| if path == output { 0o040 } else { 0 };
    for folder in [&world.data(), &backup, &restored] {
        assert_eq!(open_to_others(folder, &allowed), Vec::<String>::new());
    }
    assert_eq!(fs::metadata(&output).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn the_mode_of_the_output_is_configured() {
    let mut world = World::new();
    world.set_umask("077");
    world.set("TOWPATH_INGEST__WORKER__OUTPUT_MODE", "0644");
    let running = world.up();
    assert_eq!(world.client().post("/enqueue", &[], b"hello").status, 200);
    wait_until("the output", SOON, || world.output().exists());
    wait_until("its mode", SOON, || {
        fs::metadata(world.output()).unwrap().mode() & 0o777 == 0o644
    });
    drop(running);
    let refused = world.run(&["config", "check", "--set", "ingest.worker.output_mode=0777"]);
    assert!(error(&refused).contains("0600 to 0666"), "{refused:?}");
}

#[test]
fn a_data_folder_that_others_can_change_is_refused() {
    let world = World::new();
    fs::create_dir(world.data()).unwrap();
    fs::write(world.data().join("admin.token"), "attackertoken\n").unwrap();
    set_mode(&world.data(), 0o777);
    let refused = world.run(&["up"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(error(&refused).contains("chmod o-w"), "{refused:?}");
    assert_eq!(fs::read_dir(world.data()).unwrap().count(), 1);
    set_mode(&world.data(), 0o755);
    // Only root can give files away.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if is_root {
        let token = world.data().join("admin.token");
        std::os::unix::fs::chown(&token, Some(65534), None).unwrap();
        let refused = world.run(&["up"]);
        assert!(
            error(&refused).contains("belongs to user 65534"),
            "{refused:?}"
        );
        std::os::unix::fs::chown(world.data(), Some(65534), None).unwrap();
        let refused = world.run(&["up"]);
        assert!(error(&refused).contains("chown 0"), "{refused:?}");
    }
}

/// A listener, and the requests that it gets.
fn listener(address: &str) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap_or(0);
            let text = String::from_utf8_lossy(&head[..length]).into_owned();
            sender.send(text).ok();
        }
    });
    (address, receiver)
}

/// The two files of a working folder that lead elsewhere.
fn folders(admin: &str, data: &Path, key: &str) -> [(&'static str, String); 2] {
    let data = data.display();
    [
        (
            ".env",
            format!(
                "TOWPATH_SERVER__ADMIN={admin}\nTOWPATH_DATA__DIR={data}\nCONTROLLER_URL=http://{admin}\nAPI_KEY_FILE={key}\n"
            ),
        ),
        (
            "towpath.toml",
            format!(
                "[server]\nadmin = \"{admin}\"\n[data]\ndir = \"{data}\"\n[fleet]\napi_keys_file = \"{key}\"\n[fleet.agent]\ncontroller = \"http://{admin}\"\n"
            ),
        ),
    ]
}

#[test]
fn the_working_folder_does_not_decide_where_a_token_goes() {
    let world = World::new();
    let secret: PathBuf = world.folder.join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("admin.token"), "SEKRET-TOKEN\n").unwrap();
    fs::write(secret.join("fleet.key"), "SEKRET-KEY-OF-THE-FLEET\n").unwrap();
    let checkout = world.folder.join("checkout");
    fs::create_dir(&checkout).unwrap();
    let (address, received) = listener("127.0.0.1");
    let key = secret.join("fleet.key");
    for (file, text) in folders(&address, &secret, key.to_str().unwrap()) {
        fs::write(checkout.join(file), text).unwrap();
        for args in [
            &["queue", "ls"][..],
            &["fleet", "agents"],
            &["fleet", "config", "history"],
        ] {
            let mut command = world.command(args);
            command
                .current_dir(&checkout)
                .env_remove("TOWPATH_SERVER__ADMIN");
            let refused = command.output().unwrap();
            assert_eq!(refused.status.code(), Some(6), "{file}: {refused:?}");
            assert!(
                error(&refused).contains("working folder"),
                "{file}: {refused:?}"
            );
        }
        assert_eq!(received.try_recv().ok(), None, "{file}");
        fs::remove_file(checkout.join(file)).unwrap();
    }
    // The user names the address.
    let mut command = world.command(&["queue", "ls", "--url", &address, "--token", "MEANT"]);
    command.current_dir(&checkout).output().unwrap();
    let head = received.recv_timeout(SOON).unwrap();
    assert!(head.contains("Bearer MEANT"), "{head}");
}

#[test]
fn tokens_cross_no_network_in_clear_text() {
    let world = World::new();
    let ls = |args: &[&str]| {
        let all = [&["queue", "ls", "--token", "SEKRET"], args].concat();
        world.run(&all)
    };
    // Documentation addresses, which nothing routes.
    let refused = ls(&["--url", "http://192.0.2.1:7070"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(error(&refused).contains("`--insecure`"), "{refused:?}");
    let here = ls(&["--url", "http://127.0.0.1:1"]);
    assert_eq!(here.status.code(), Some(4), "{here:?}");
    let meant = ls(&["--url", "http://towpath.invalid:1", "--insecure"]);
    assert_eq!(meant.status.code(), Some(4), "{meant:?}");
}

#[test]
fn redirects_take_no_key_elsewhere() {
    let world = World::new();
    let (elsewhere, received) = listener("127.0.0.2");
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        use std::io::Write;
        for stream in first.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut head = [0; 4096];
            if stream.read(&mut head).unwrap_or(0) == 0 {
                continue;
            }
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{elsewhere}/steal\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    let output = world.run(&["queue", "ls", "--url", &address, "--token", "SEKRET"]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(received.try_recv().ok(), None);
}

#[test]
fn strangers_see_states_and_no_addresses() {
    let mut world = World::new();
    world.set("REDIS_ADDR", "127.0.0.1:1");
    let running = world.spawn(&["run", "ingest.api"]);
    wait_until("the answer", SOON, || {
        let answer = world.client().send("GET", "/healthz", &[], b"");
        answer.is_ok_and(|answer| {
            answer.status == 503 && answer.text().trim_end() == "redis ping failed: unavailable"
        })
    });
    drop(running);
}

#[test]
fn keys_of_clients_do_not_control_the_terminal() {
    let world = World::new();
    let _running = world.up();
    world.ok(&["kv", "set", "order:X\nforged\u{1b}[2J", "v"]);
    let listed = world.ok(&["kv", "keys", "order:*"]);
    assert_eq!(listed, "order:X\\nforged\\u{1b}[2J\n");
}
