//! What a container may do, and what happens at its limits.

use crate::host_root::{in_time, place, put_layer};
use arco_model::plan::HostMount;
use arco_orchestrator::local::container::{ContainerFile, RestartPolicy};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_root_inside_has_few_rights() {
    let Some(place) = place().await else { return };
    let (lines, _) = place.run(place.spec("id -u; grep -E '^(Seccomp|NoNewPrivs|CapBnd|CapEff):' /proc/self/status; cat /proc/self/uid_map /proc/self/cgroup; ls /proc/net/dev; cat /etc/resolv.conf; cat /etc/hostname")).await;
    let text = lines.join("\n");
    assert_eq!(lines[0], "0");
    assert!(text.contains("Seccomp:\t2"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(text.contains("CapBnd:\t00000000800005eb") || text.contains("CapBnd:\t0000000080000"), "{text}");
    let map = lines.iter().find(|it| it.split_whitespace().nth(2) == Some("65536")).unwrap();
    assert_ne!(map.split_whitespace().nth(1), Some("0"), "a user namespace of its own: {map}");
    assert!(text.contains("nameserver 10.0.0.1") && text.contains("box"), "{text}");
    let refused = place
        .spec("echo x > /proc/sys/kernel/hostname; echo x > /sys/fs/cgroup/cgroup.procs; echo x > /sys/fs/cgroup/memory/cgroup.procs; cat /proc/kcore | dd bs=1 count=1; echo y > /.arco/init; dd if=/dev/mem count=1; ls /dev");
    let (lines, _) = place.run(refused).await;
    let text = lines.join("\n");
    let count = text.matches("Read-only file system").count();
    assert!(count >= 2 && !text.contains("sda") && !text.contains("loop"), "{text}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_found_by_name_and_working_folders_are_made() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("id; echo $HOME $PATH; ls -d $PWD; echo out > /dev/stdout");
    spec.user = "web".to_owned();
    spec.working_dir = "/srv/new/folder".to_owned();
    let (lines, _) = place.run(spec).await;
    assert!(lines[0].starts_with("uid=1000(web) gid=1000(web)") && lines[0].contains("2000(extra)"), "{lines:?}");
    assert!(lines[1].starts_with("/home/web /usr/local/sbin"), "{lines:?}");
    assert_eq!(lines[2..], ["/srv/new/folder", "out"]);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_files_are_the_users_own_and_read_only() {
    let Some(place) = place().await else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = |path: &str, content: &str, mode| ContainerFile { path: path.into(), content: content.into(), mode };
    let files = vec![
        file("/etc/app/app.conf", "a=1\n", 0o444),
        file("/srv/key.pem", "hunter2\n", 0o400),
        file("/srv/hook", "#!/bin/sh\necho hooked\n", 0o555),
        file("/data/deep/in.conf", "within\n", 0o444),
        file("/etc/big", &format!("{}end\n", "x".repeat(3 << 20)), 0o444),
    ];
    let data = HostMount { host_path: folder.path().to_owned(), path: "/data".to_owned(), writable: true };
    let mut spec = place.spec(
        "cat /etc/app/app.conf /srv/key.pem /data/deep/in.conf && stat -c '%a %u' /srv/key.pem && /srv/hook && tail -c 4 /etc/big",
    );
    (spec.user, spec.files, spec.mounts) = ("web".to_owned(), files.clone(), vec![data]);
    let (lines, _) = place.run(spec).await;
    assert_eq!(lines, ["a=1", "hunter2", "within", "400 1000", "hooked", "end"]);
    let kept = std::fs::metadata(folder.path().join("deep/in.conf")).unwrap();
    assert_eq!(kept.len(), 0, "what is put into a volume is not kept there");

    // Not even root writes or removes them.
    let mut spec = place.spec("echo x > /etc/app/app.conf; rm -f /srv/key.pem; cat /etc/app/app.conf /srv/key.pem");
    spec.files = files;
    let (lines, _) = place.run(spec).await;
    let text = lines.join("\n");
    for said in ["Read-only file system", "a=1", "hunter2"] {
        assert!(text.contains(said), "{said}: {text}");
    }

    // Where the image has a folder, it is said.
    let mut spec = place.spec("true");
    spec.files = vec![file("/etc", "x", 0o444)];
    let refused = place.containers.create(spec).await.unwrap_err().to_string();
    assert!(refused.contains("/etc") && refused.contains("a folder already"), "{refused}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_those_asked_for_and_seen_inside() {
    let Some(place) = place().await else { return };
    let root = std::path::Path::new("/sys/fs/cgroup");
    let mut rows: Vec<(&str, &str)> = if root.join("cgroup.controllers").exists() {
        vec![("memory.max", "50331648"), ("cpu.max", "25000 100000"), ("pids.max", "48")]
    } else {
        vec![("memory/memory.limit_in_bytes", "50331648"), ("cpu/cpu.cfs_quota_us", "25000"), ("pids/pids.max", "48")]
    };
    // Kernels need not count swap.
    if root.join("memory/memory.memsw.limit_in_bytes").exists() {
        rows.push(("memory/memory.memsw.limit_in_bytes", "50331648"));
    } else if root.join("system.slice/memory.swap.max").exists() {
        rows.push(("memory.swap.max", "0"));
    }
    let files = rows.iter().map(|(file, _)| file.replacen("cpu/", "cpu*/", 1)).collect::<Vec<_>>().join(" ");
    let mut spec = place.spec(&format!("cd /sys/fs/cgroup && cat {files}"));
    spec.resources.memory_mb = 48;
    spec.resources.cpu_milli = 250;
    spec.resources.pids = 48;
    let (lines, _) = place.run(spec).await;
    assert_eq!(lines, rows.iter().map(|(_, value)| *value).collect::<Vec<_>>(), "{files}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_is_named() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("x=$(dd if=/dev/zero bs=1M count=200 | tail -c 200000000); exit 1");
    spec.resources.memory_mb = 24;
    let (_, state) = place.run(spec).await;
    let exit = state.last_exit.unwrap();
    assert!(exit.out_of_memory && !exit.disk_full, "{exit:?}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_the_writers_own() {
    let Some(place) = place().await else { return };
    let (lines, state) = place.run(place.spec("dd if=/dev/zero of=/big bs=1M count=100 || exit 9")).await;
    let exit = state.last_exit.unwrap();
    assert!(exit.disk_full && exit.status == 9 && !exit.out_of_memory, "{exit:?} {lines:?}");
    assert!(exit.last_output.contains("No space left"), "{exit:?}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stays_within_its_limit() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("f() { f | f & }; f; sleep 1000");
    spec.resources.pids = 16;
    spec.restart = RestartPolicy::BackOff;
    let id = spec.id.clone();
    place.containers.create(spec).await.unwrap();
    assert!(place.containers.usage(&id).await.unwrap().pids <= 16);
    place.containers.stop(&id, 0).await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_thinned_out_and_bounded() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("while :; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done & tail -c 40000000 /dev/zero; echo; sleep 1000");
    spec.restart = RestartPolicy::BackOff;
    let id = spec.id.clone();
    let mut output = place.containers.output(&id).await;
    let (began, mut said, mut bytes) = (Instant::now(), false, 0);
    place.containers.create(spec).await.unwrap();
    // A slow machine may never write so much that something is left out.
    while !said && began.elapsed() < in_time(Duration::from_secs(60)) {
        let line = output.recv().await.unwrap();
        assert!(line.text.len() <= 16 << 10);
        bytes += line.text.len() as u64;
        said = line.text.contains("missing here");
    }
    // 16 MiB at once and 4 MiB each second.
    let most = (16 << 20) + (4 << 20) * (began.elapsed().as_secs() + 1);
    assert!(said || bytes <= most, "{bytes} bytes were kept, at most {most} may be");
    // What is written meanwhile moves from file to file.
    place.containers.stop(&id, 0).await.unwrap();
    let log = place.config.data_dir.join("instances").join(id.as_str()).join("log");
    let size: u64 = std::fs::read_dir(log).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 2 << 20, "{size}");
    drop(output);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_cannot_be_written_and_links_cannot_lead_out() {
    let Some(place) = place().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    builder.append_link(&mut header, "trap", folder.path()).unwrap();
    let layer = put_layer(&place.images, &builder.into_inner().unwrap()).await;
    let given = tempfile::tempdir().unwrap();
    let mut spec = place.spec("echo x > /trap/in/file; echo $?");
    spec.layers.push(layer);
    spec.mounts = vec![HostMount { host_path: given.path().to_owned(), path: "/trap/in".to_owned(), writable: false }];
    let (lines, _) = place.run(spec).await;
    assert!(lines.iter().any(|it| it.contains("Read-only")), "{lines:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the host's folder is untouched");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_layers_fit() {
    let Some(place) = place().await else { return };
    let mut spec = place.spec("cat /n; sleep 1000");
    for number in 0..100 {
        let mut builder = tar::Builder::new(Vec::new());
        let text = format!("{number}\n");
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, "n", text.as_bytes()).unwrap();
        spec.layers.push(put_layer(&place.images, &builder.into_inner().unwrap()).await);
    }
    spec.restart = RestartPolicy::BackOff;
    let id = spec.id.clone();
    let mut output = place.containers.output(&id).await;
    place.containers.create(spec).await.unwrap();
    assert_eq!(output.recv().await.unwrap().text, "99");
    place.containers.stop(&id, 0).await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_starts_quickly_and_its_shim_is_small() {
    let Some(place) = place().await else { return };
    place.run(place.spec("echo warm")).await;
    let mut times = Vec::new();
    for _ in 0..10 {
        let spec = place.spec("echo first; sleep 1000");
        let id = spec.id.clone();
        let mut output = place.containers.output(&id).await;
        let begin = std::time::Instant::now();
        place.containers.create(spec).await.unwrap();
        let created = begin.elapsed();
        output.recv().await.unwrap();
        times.push((begin.elapsed(), created));
    }
    times.sort();
    let id = place.containers.list().await.last().unwrap().id.clone();
    let pid = place.containers.state(&id).await.unwrap().pid.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim = status.lines().find_map(|it| it.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let pss = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let kib: u64 = text
            .lines()
            .find_map(|it| it.strip_prefix("Pss:"))
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib
    };
    let (median, pss) = (times[times.len() / 2], pss(&shim) + pss(&pid.to_string()));
    eprintln!(
        "first line after {:?}, created after {:?}; shim and init together {pss} KiB proportional",
        median.0, median.1
    );
    // An unoptimised build on a busy machine; the real bounds are those of the benchmark.
    assert!(median.0 < in_time(std::time::Duration::from_secs(30)) && pss < 8 << 10, "{times:?} {pss} KiB");
    place.end().await;
}
