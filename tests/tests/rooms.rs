//! Which room may know which (ARCHITECTURE.md, "Rooms"): read from the workspace's manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use allod_tests::paths;
use allod_tests::run::finish;
use serde_json::Value;

/// A room and the rooms that it may depend on. Arrows point down only.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "allod",
        &[
            "api", "cloud", "cluster", "disk", "model", "object", "process", "store", "virtio", "vmm",
            "vswitch",
        ],
    ),
    ("api", &["cloud", "model"]),
    ("cloud", &["cluster", "model", "object", "store"]),
    ("cluster", &["model", "store"]),
    ("object", &["model", "store"]),
    ("store", &["model"]),
    ("vswitch", &["model", "process", "virtio"]),
    ("disk", &["model", "process", "virtio"]),
    ("vmm", &["model", "process", "virtio"]),
    ("virtio", &["model"]),
    ("process", &["model"]),
    ("model", &[]),
];

/// What stands beside the rooms and drives them from outside: of the workspace it may use the harness alone. But benches measure
/// a volume's data path by itself, too.
const OUTSIDE: &[&str] = &["tests", "benches", "xtask"];
const MEASURED: &[&str] = &["disk", "model", "process", "virtio"];

/// An outside library and the rooms that may use it.
const LIBRARIES: &[(&str, &[&str])] = &[
    // "cloud knows no HTTP", "children know no HTTP".
    ("axum", &["allod", "api"]),
    ("hyper", &["allod", "api"]),
    // "Only store and the rules above it speak SQL": children have no database.
    ("rusqlite", &["cloud", "store"]),
    ("openraft", &["store"]),
];

struct Package {
    dependencies: BTreeSet<String>,
}

/// The workspace's members by the name of their folder, with all kinds of dependencies (of tests and builds, too).
fn workspace() -> BTreeMap<String, Package> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(paths::root());
    let metadata: Value = serde_json::from_str(&finish(&mut cargo).unwrap()).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let room = |package: &Value| {
        package["name"]
            .as_str()
            .unwrap()
            .trim_start_matches("allod-")
            .to_owned()
    };
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let names = dependencies.iter().map(|dependency| {
                // A path marks a member of the workspace.
                if dependency["path"].is_string() {
                    room(dependency)
                } else {
                    dependency["name"].as_str().unwrap().into()
                }
            });
            (
                room(package),
                Package {
                    dependencies: names.collect(),
                },
            )
        })
        .collect()
}

#[test]
fn every_member_of_the_workspace_has_its_place_in_the_map() {
    let known: BTreeSet<_> = ROOMS
        .iter()
        .map(|(room, _)| *room)
        .chain(OUTSIDE.iter().copied())
        .collect();
    let members = workspace();
    let members: BTreeSet<_> = members.keys().map(String::as_str).collect();
    assert_eq!(members, known);
}

#[test]
fn arrows_point_down_only() {
    let members = workspace();
    let mut wrong = Vec::new();
    for (name, package) in &members {
        let allowed = match ROOMS.iter().find(|(room, _)| room == name) {
            Some((_, allowed)) => allowed,
            None => &["tests"][..],
        };
        for dependency in package
            .dependencies
            .iter()
            .filter(|d| members.contains_key(*d) && *d != name)
        {
            let measured = name == "benches" && MEASURED.contains(&dependency.as_str());
            if !measured && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} → {dependency}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "these arrows are not on the map: {}",
        wrong.join(", ")
    );
}

#[test]
fn libraries_stay_in_their_rooms() {
    let members = workspace();
    let mut wrong = Vec::new();
    for (library, rooms) in LIBRARIES {
        for (name, package) in &members {
            if package.dependencies.contains(*library) && !rooms.contains(&name.as_str()) {
                wrong.push(format!("{name} uses {library}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

#[test]
fn the_map_has_no_circle() {
    // A room may name only rooms that are named after it, so an arrow upwards cannot even be put on the map.
    let order: BTreeMap<_, _> = ROOMS
        .iter()
        .enumerate()
        .map(|(index, (room, _))| (*room, index))
        .collect();
    for (room, below) in ROOMS {
        for other in *below {
            assert!(order[other] > order[room], "{room} → {other}");
        }
    }
}
