//! The rules of a spec, row by row.

use super::*;

fn spec() -> ComponentSpec {
    ComponentSpec::new(Source::Image { reference: "stack/base".to_owned() })
}

#[test]
fn each_broken_rule_has_its_code() {
    type Break = fn(&mut ComponentSpec);
    let rows: &[(&str, Break)] = &[
        ("git_url_refused", |it| {
            it.source = Source::Git { url: "ext::id".into(), reference: String::new(), dir: String::new() }
        }),
        ("ref_invalid", |it| {
            it.source = Source::Git { url: "https://h/a".into(), reference: "--x".into(), dir: String::new() }
        }),
        ("dir_invalid", |it| {
            it.source = Source::Git { url: "https://h/a".into(), reference: String::new(), dir: "../x".into() }
        }),
        ("replicas_invalid", |it| it.replicas = 101),
        ("memory_invalid", |it| it.resources.memory_mb = 1),
        ("cpu_invalid", |it| it.resources.cpu_milli = 1),
        ("port_invalid", |it| it.ports.push(Port { port: 0, protocol: Protocol::Http, outer: true })),
        ("port_duplicate", |it| it.ports = vec![Port { port: 80, protocol: Protocol::Http, outer: true }; 2]),
        ("env_name_invalid", |it| drop(it.env.insert("A-B".into(), "x".into()))),
        ("env_name_reserved", |it| drop(it.env.insert("ARCO_INSTANCE".into(), "x".into()))),
        ("env_name_reserved", |it| drop(it.env.insert("ARCO_X".into(), "x".into()))),
        ("env_name_reserved", |it| drop(it.build.env.insert("ARCO_X".into(), "x".into()))),
        ("env_name_reserved", |it| drop(it.env.insert("PORT".into(), "1".into()))),
        ("env_name_reserved", |it| {
            it.secrets.insert("PORT".into(), 1);
        }),
        ("env_value_invalid", |it| drop(it.env.insert("A".into(), "\0".into()))),
        ("env_duplicate", |it| {
            it.env.insert("A".into(), "x".into());
            it.secrets.insert("A".into(), 1);
        }),
        ("volume_path_invalid", |it| it.volumes.push(volume("/a/../b"))),
        ("volume_path_invalid", |it| it.volumes.push(volume("/proc"))),
        ("volume_path_invalid", |it| it.volumes.push(volume("/"))),
        ("volume_duplicate", |it| it.volumes = vec![volume("/a"), volume("/a")]),
        ("file_path_taken", |it| {
            it.volumes.push(volume("/a"));
            it.files.push(FileSpec { path: "/a".into(), content: Some(String::new()), secret: None, mode: None });
        }),
        ("schedule_missing", |it| it.kind = ComponentKind::Cron),
        ("schedule_unused", |it| it.schedule = Some("* * * * *".into())),
        ("schedule_invalid", |it| {
            it.kind = ComponentKind::Cron;
            it.schedule = Some("every day".into());
        }),
        ("scheduling_invalid", |it| it.scheduling.priority_class = Some(String::new())),
        ("overlay_invalid", |it| it.overlay = Some(serde_json::json!({"containers": []}))),
        ("command_empty", |it| it.command = Some(Command::Exec(vec![]))),
    ];
    for (code, break_it) in rows {
        let mut spec = spec();
        assert!(validate(&spec).is_ok());
        break_it(&mut spec);
        assert_eq!(validate(&spec).unwrap_err().code, *code);
    }
}

#[test]
fn a_port_for_the_program_alone_is_refused_with_what_sets_it() {
    let mut it = spec();
    it.env.insert("PORT".into(), "1".into());
    assert!(validate(&it).unwrap_err().advice.contains("`--port`"));
    // A build may be told whatever its tools read.
    it.build.env = std::mem::take(&mut it.env);
    assert!(validate(&it).is_ok());
}

fn volume(path: &str) -> VolumeSpec {
    VolumeSpec {
        name: VolumeName::new("v").unwrap(),
        path: path.into(),
        size_mb: 10,
        kind: VolumeKind::Shared,
        class: None,
    }
}

#[test]
fn a_class_is_a_name_that_a_cluster_can_have_and_memory_has_none() {
    let code = |kind, class: &str| {
        let volume = VolumeSpec { kind, class: Some(class.to_owned()), ..volume("/data") };
        validate(&ComponentSpec { volumes: vec![volume], ..spec() }).err().map(|it| it.code)
    };
    for class in ["fast", "a.b-c.d1"] {
        assert_eq!(code(VolumeKind::Shared, class), None, "{class}");
        assert_eq!(code(VolumeKind::Memory, class).as_deref(), Some("class_invalid"), "{class}");
    }
    for class in ["", "Fast", "-a", "a-", "a..b", "a b", "a,b=c", &"a".repeat(254)] {
        assert_eq!(code(VolumeKind::Local, class).as_deref(), Some("class_invalid"), "{class}");
    }
}

#[test]
fn a_single_program_replaces_its_shell() {
    assert_eq!(Command::Shell("node a.js".into()).argv()[2], "exec node a.js");
    for line in ["a && b", "cd x; y", "A=1 b", "export A=1", "a | b"] {
        assert_eq!(Command::Shell(line.into()).argv()[2], line);
    }
}

#[test]
fn a_schedule_has_a_next_time_in_utc() {
    use crate::time::Timestamp;
    let noon = Timestamp(1_769_860_800_000); // 2026-01-31T12:00:00Z
    assert_eq!(next_run("*/5 * * * *", noon).unwrap().rfc3339(), "2026-01-31T12:05:00.000Z");
    assert_eq!(next_run("0 0 1 * *", noon).unwrap().rfc3339(), "2026-02-01T00:00:00.000Z");
    assert_eq!(next_run("nonsense", noon), None);
}

#[test]
fn what_is_not_asked_of_a_cluster_is_not_written() {
    let mut spec = spec();
    let written = serde_json::to_value(&spec).unwrap();
    assert!(written.get("scheduling").is_none() && written.get("overlay").is_none());
    assert!(written.get("files").is_none(), "fingerprints of what has none stay");
    assert!(spec.of_clusters().is_empty());
    spec.scheduling.priority_class = Some("high".into());
    spec.overlay = Some(serde_json::json!({}));
    assert_eq!(spec.of_clusters(), ["scheduling", "overlay"]);
}
