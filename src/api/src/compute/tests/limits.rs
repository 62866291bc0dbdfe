//! From Cinder's QoS specs and Nova's extra specs to what a machine is told.

use model::disk::{DiskLimits, Rate};

use super::*;

impl Api {
    async fn volumes(&self, token: &str, method: &str, path: &str, body: Value) -> Value {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("/volume/v3{path}"))
            .header("content-type", "application/json")
            .header("x-auth-token", token)
            .header("openstack-api-version", "volume 3.71");
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        let reply = self.send(request.body(body).unwrap()).await;
        assert!(reply.status.is_success(), "{method} {path}: {}", reply.body);
        reply.body
    }

    /// Waits until a machine's disk of this size in GiB may be used as wanted.
    async fn limited(&self, gib: u64, wanted: DiskLimits) {
        let started = std::time::Instant::now();
        loop {
            let found = {
                let state = self.test.drivers.state();
                let mut disks = state.machines.values().flat_map(|(machine, _)| &machine.disks);
                disks.find(|disk| disk.size == gib << 30).map(|disk| disk.limits)
            };
            if found == Some(wanted) {
                return;
            }
            let waited = started.elapsed();
            assert!(waited.as_secs() < 20, "{found:?}, not {wanted:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn what_types_and_flavors_say_reaches_the_machine() {
    let api = Api::running().await;
    cloud::compute::limits::spawn(api.test.cloud.clone());
    let admin = api.admin.clone();
    let specs = json!({"total_iops_sec_per_gb": "100", "total_iops_sec_per_gb_min": "250",
                       "write_bytes_sec": "5000000", "vendor:shine": "bright", "consumer": "front-end",
                       "name": "gold"});
    let qos = api
        .volumes(&admin, "POST", "/qos-specs", json!({"qos_specs": specs}))
        .await;
    assert_eq!(
        qos["qos_specs"]["specs"]["vendor:shine"], "bright",
        "it is kept as it is"
    );
    let qos = qos["qos_specs"]["id"].as_str().unwrap().to_owned();
    let kind = api
        .volumes(&admin, "POST", "/types", json!({"volume_type": {"name": "gold"}}))
        .await;
    let kind = kind["volume_type"]["id"].as_str().unwrap().to_owned();
    let associate = format!("/qos-specs/{qos}/associate?vol_type_id={kind}");
    api.volumes(&admin, "GET", &associate, Value::Null).await;

    let flavor = json!({"flavor": {"id": "limited", "name": "limited", "vcpus": 1, "ram": 512, "disk": 3}});
    let made = api.admin("2.96", "POST", "/flavors", Some(flavor)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let extra =
        json!({"extra_specs": {"quota:disk_total_iops_sec": "300", "quota:disk_read_bytes_sec": "10240000"}});
    let made = api
        .admin("2.96", "POST", "/flavors/limited/os-extra_specs", Some(extra))
        .await;
    assert_eq!(made.status, 200, "{}", made.body);

    let image = api.image().await;
    let id = api.server(&image, "vm", json!({"flavorRef": "limited"})).await;
    api.until(&id, "ACTIVE").await;
    let root = DiskLimits {
        total_iops: Some(Rate::steady(300)),
        read_bytes: Some(Rate::steady(10_240_000)),
        ..DiskLimits::default()
    };
    api.limited(3, root).await;

    let member = api.member.clone();
    let new = json!({"volume": {"size": 2, "volume_type": "gold"}});
    let volume = api.volumes(&member, "POST", "/volumes", new).await["volume"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let status = async |wanted: &str| {
        let mut events = api.test.cloud.store.subscribe();
        let path = format!("/volumes/{volume}");
        while api.volumes(&member, "GET", &path, Value::Null).await["volume"]["status"] != wanted {
            let _ = events.recv().await;
        }
    };
    status("available").await;
    let attach = json!({"volumeAttachment": {"volumeId": volume}});
    let attached = api
        .member(
            "2.96",
            "POST",
            &format!("/servers/{id}/os-volume_attachments"),
            Some(attach),
        )
        .await;
    assert_eq!(attached.status, 200, "{}", attached.body);
    status("in-use").await;
    let iops = |total| DiskLimits {
        total_iops: Some(Rate::steady(total)),
        write_bytes: Some(Rate::steady(5_000_000)),
        ..DiskLimits::default()
    };
    api.limited(2, iops(250)).await;
    // It grows while it is attached.
    let action = format!("/volumes/{volume}/action");
    let extend = json!({"os-extend": {"new_size": 10}});
    api.volumes(&member, "POST", &action, extend).await;
    api.limited(10, iops(1000)).await;
    status("in-use").await;
    // The administrator changes a figure, and takes one away.
    let change = json!({"qos_specs": {"total_iops_sec_per_gb": "55"}});
    api.volumes(&admin, "PUT", &format!("/qos-specs/{qos}"), change)
        .await;
    api.limited(10, iops(550)).await;
    let keys = json!({"keys": ["write_bytes_sec"]});
    api.volumes(&admin, "PUT", &format!("/qos-specs/{qos}/delete_keys"), keys)
        .await;
    let without = DiskLimits {
        write_bytes: None,
        ..iops(550)
    };
    api.limited(10, without).await;
    // The volume is of a built-in class.
    let retype = json!({"os-retype": {"new_type": "iops-15000", "migration_policy": "never"}});
    api.volumes(&member, "POST", &action, retype).await;
    let class = DiskLimits {
        write_bytes: None,
        ..iops(146)
    };
    api.limited(10, class).await;
    // The server's own disk keeps what its flavor says.
    api.limited(3, root).await;
}

#[tokio::test]
async fn classes_are_there_for_all_and_promise_neither_encryption_nor_copies() {
    let api = Api::new().await;
    let shown = api
        .volumes(&api.member.clone(), "GET", "/types", Value::Null)
        .await;
    let types = shown["volume_types"].as_array().unwrap();
    let names: Vec<&str> = types.iter().map(|kind| kind["name"].as_str().unwrap()).collect();
    for class in [
        "iops-500",
        "iops-1500",
        "iops-3000",
        "iops-7500",
        "iops-15000",
        "archive",
        "standard",
    ] {
        assert!(names.contains(&class), "{class} of {names:?}");
    }
    // SCS-0114: what stands in brackets before a description is a promise.
    for kind in types {
        assert!(!kind["description"].as_str().unwrap().starts_with('['), "{kind}");
    }
}
