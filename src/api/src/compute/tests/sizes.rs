//! Flavors, key pairs, quotas, groups, nodes.

use serde_json::json;

use super::Api;

#[tokio::test]
async fn the_scs_flavors_are_there_from_the_start() {
    let api = Api::new().await;
    let list = api.get("2.96", "/flavors/detail").await;
    let flavors = list["flavors"].as_array().unwrap();
    assert_eq!(flavors.len(), 15);
    for (name, vcpus, ram, disk, cpu, disk_type) in [
        ("SCS-1V-4", 1, 4096, 0, "shared-core", None),
        ("SCS-4V-16-100s", 4, 16384, 100, "shared-core", Some("ssd")),
        ("SCS-2V-4-20s", 2, 4096, 20, "shared-core", Some("ssd")),
        ("SCS-16V-32", 16, 32768, 0, "shared-core", None),
        ("SCS-1L-1", 1, 1024, 0, "crowded-core", None),
    ] {
        let flavor = flavors.iter().find(|f| f["name"] == name).unwrap();
        assert_eq!(
            (&flavor["vcpus"], &flavor["ram"], &flavor["disk"]),
            (&json!(vcpus), &json!(ram), &json!(disk))
        );
        let mut specs = json!({"scs:name-v2": name, "scs:cpu-type": cpu});
        // Every dash after the first is a colon.
        specs["scs:name-v1"] = json!(format!("SCS-{}", name[4..].replace('-', ":")));
        if let Some(kind) = disk_type {
            specs["scs:disk0-type"] = json!(kind);
        }
        assert_eq!(flavor["extra_specs"], specs, "{name}");
    }
    // What older versions show.
    let old = api.get("2.1", "/flavors/SCS-1L-1").await;
    assert_eq!(
        (&old["flavor"]["swap"], old["flavor"].get("extra_specs")),
        (&json!(""), None)
    );
    assert!(old["flavor"].get("description").is_none());
    let new = api.get("2.75", "/flavors/SCS-1L-1").await;
    assert_eq!(new["flavor"]["swap"], json!(0));
    // Pages.
    let mut seen = Vec::new();
    let mut path = "/flavors?limit=4".to_owned();
    loop {
        let page = api.get("2.1", &path).await;
        seen.extend(
            page["flavors"]
                .as_array()
                .unwrap()
                .iter()
                .map(|f| f["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["flavors_links"][0]["href"].as_str() else {
            break;
        };
        path = next.split_once("/compute/v2.1").unwrap().1.to_owned();
    }
    assert_eq!(seen.len(), 15);
    assert_eq!(
        api.get("2.1", "/flavors?minRam=32768").await["flavors"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        api.member("2.75", "GET", "/flavors?bogus=1", None).await.status,
        400
    );
    assert_eq!(
        api.member("2.74", "GET", "/flavors?bogus=1", None).await.status,
        200
    );
}

#[tokio::test]
async fn admins_make_flavors_and_say_who_may_use_them() {
    let api = Api::new().await;
    let body = json!({"flavor": {"name": "tiny", "ram": 64, "vcpus": "1", "disk": 0, "id": "7",
        "os-flavor-access:is_public": false}});
    assert_eq!(
        api.member("2.1", "POST", "/flavors", Some(body.clone()))
            .await
            .status,
        403
    );
    let made = api.admin("2.1", "POST", "/flavors", Some(body.clone())).await;
    assert_eq!(
        (made.status.as_u16(), &made.body["flavor"]["id"]),
        (200, &json!("7"))
    );
    assert_eq!(api.admin("2.1", "POST", "/flavors", Some(body)).await.status, 409);
    assert_eq!(api.member("2.1", "GET", "/flavors/7", None).await.status, 404);
    let grant = json!({"addTenantAccess": {"tenant": api.project}});
    assert_eq!(
        api.admin("2.1", "POST", "/flavors/7/action", Some(grant.clone()))
            .await
            .status,
        200
    );
    assert_eq!(
        api.admin("2.1", "POST", "/flavors/7/action", Some(grant))
            .await
            .status,
        409
    );
    assert_eq!(api.member("2.1", "GET", "/flavors/7", None).await.status, 200);
    let specs = json!({"extra_specs": {"a:b": "c"}});
    assert_eq!(
        api.admin("2.1", "POST", "/flavors/7/os-extra_specs", Some(specs.clone()))
            .await
            .body,
        specs
    );
    assert_eq!(
        api.get("2.1", "/flavors/7/os-extra_specs/a:b").await,
        json!({"a:b": "c"})
    );
    assert_eq!(
        api.admin("2.1", "DELETE", "/flavors/7/os-extra_specs/a:b", None)
            .await
            .status,
        200
    );
    let gone = api
        .member("2.1", "GET", "/flavors/7/os-extra_specs/a:b", None)
        .await;
    assert_eq!(
        gone.body["itemNotFound"]["message"],
        "Flavor 7 has no extra specs with key a:b."
    );
    assert_eq!(api.admin("2.1", "DELETE", "/flavors/7", None).await.status, 202);
    let gone = api.admin("2.1", "GET", "/flavors/7", None).await;
    assert_eq!(
        gone.body,
        json!({"itemNotFound": {"code": 404, "message": "Flavor 7 could not be found."}})
    );
    for bad in [
        json!({"flavor": {"name": "x", "ram": 0, "vcpus": 1, "disk": 0}}),
        json!({"flavor": {"name": "", "ram": 1, "vcpus": 1, "disk": 0}}),
        json!({"flavor": {"name": "x", "ram": 1, "vcpus": 1}}),
        json!({"flavor": {"name": "x", "ram": 1, "vcpus": 1, "disk": 0, "description": "d"}}),
        json!({"flavor": {"name": "x", "ram": 1, "vcpus": 1, "disk": 0, "swap": -1}}),
        json!({"flavor": "x"}),
    ] {
        assert_eq!(
            api.admin("2.1", "POST", "/flavors", Some(bad.clone()))
                .await
                .status,
            400,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn key_pairs_differ_by_version() {
    let api = Api::new().await;
    let generate = |name: &str| Some(json!({"keypair": {"name": name}}));
    let old = api.member("2.1", "POST", "/os-keypairs", generate("a")).await;
    assert_eq!(old.status, 200);
    assert!(old.body["keypair"].get("type").is_none());
    let key = &old.body["keypair"];
    assert!(
        key["private_key"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN OPENSSH PRIVATE KEY-----")
    );
    assert_eq!(key["fingerprint"].as_str().unwrap().len(), 47);
    let new = api.member("2.2", "POST", "/os-keypairs", generate("b")).await;
    assert_eq!(
        (new.status.as_u16(), &new.body["keypair"]["type"]),
        (201, &json!("ssh"))
    );
    let public = key["public_key"].as_str().unwrap();
    let import = |name: &str| Some(json!({"keypair": {"name": name, "public_key": public}}));
    assert_eq!(
        api.member("2.91", "POST", "/os-keypairs", import("a@b.c"))
            .await
            .status,
        400
    );
    assert_eq!(
        api.member("2.92", "POST", "/os-keypairs", import("a@b.c"))
            .await
            .status,
        201
    );
    assert_eq!(
        api.member("2.92", "POST", "/os-keypairs", generate("c"))
            .await
            .status,
        400
    );
    let twice = api.member("2.2", "POST", "/os-keypairs", import("a")).await;
    assert_eq!(
        twice.body,
        json!({"conflictingRequest": {"code": 409, "message": "Key pair 'a' already exists."}})
    );
    let bad = json!({"keypair": {"name": "d", "public_key": "ssh-rsa nonsense"}});
    let bad = api.member("2.2", "POST", "/os-keypairs", Some(bad)).await;
    assert!(
        bad.body["badRequest"]["message"]
            .as_str()
            .unwrap()
            .starts_with("Keypair data is invalid")
    );
    assert_eq!(
        api.get("2.1", "/os-keypairs").await["keypairs"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        api.get("2.35", "/os-keypairs?limit=1").await["keypairs_links"][0]["rel"],
        "next"
    );
    let shown = api.get("2.10", "/os-keypairs/a").await;
    assert_eq!(shown["keypair"]["deleted"], json!(false));
    assert!(shown["keypair"]["id"].is_u64());
    // Another user sees none of them; an admin asks by name of the user, from 2.10.
    let user = key["user_id"].as_str().unwrap();
    assert_eq!(api.admin("2.10", "GET", "/os-keypairs/a", None).await.status, 404);
    assert_eq!(
        api.admin("2.10", "GET", &format!("/os-keypairs/a?user_id={user}"), None)
            .await
            .status,
        200
    );
    assert_eq!(
        api.ask(
            &api.reader,
            "2.10",
            "GET",
            &format!("/os-keypairs?user_id={user}"),
            None
        )
        .await
        .status,
        403
    );
    assert_eq!(
        api.member("2.1", "DELETE", "/os-keypairs/a", None).await.status,
        202
    );
    assert_eq!(
        api.member("2.2", "DELETE", "/os-keypairs/b", None).await.status,
        204
    );
    assert_eq!(
        api.member("2.2", "DELETE", "/os-keypairs/b", None).await.status,
        404
    );
}

#[tokio::test]
async fn quotas_hold_and_are_told() {
    let api = Api::new().await;
    let image = api.image().await;
    let path = format!("/os-quota-sets/{}", api.project);
    let set = json!({"quota_set": {"instances": 2, "cores": "3"}});
    assert_eq!(
        api.member("2.1", "PUT", &path, Some(set.clone())).await.status,
        403
    );
    let reply = api.admin("2.60", "PUT", &path, Some(set)).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["quota_set"]["instances"]),
        (200, &json!(2))
    );
    api.server(&image, "a", json!({})).await;
    api.server(&image, "b", json!({})).await;
    let body = json!({"server": {"name": "c", "imageRef": image, "flavorRef": "SCS-1L-1"}});
    let over = api.member("2.1", "POST", "/servers", Some(body)).await;
    assert_eq!(
        over.body,
        json!({"forbidden": {"code": 403,
            "message": "Quota exceeded for instances: Requested 1, but already used 2 of 2 instances"}})
    );
    let limits = api.get("2.1", "/limits").await;
    assert_eq!(limits["limits"]["absolute"]["totalInstancesUsed"], 2);
    assert_eq!(limits["limits"]["absolute"]["maxTotalInstances"], 2);
    assert!(limits["limits"]["absolute"].get("maxTotalFloatingIps").is_some());
    assert!(
        api.get("2.36", "/limits").await["limits"]["absolute"]
            .get("maxTotalFloatingIps")
            .is_none()
    );
    let shown = api.get("2.57", &path).await;
    assert!(
        shown["quota_set"].get("injected_files").is_none() && shown["quota_set"].get("fixed_ips").is_none()
    );
    assert_eq!(
        api.get("2.1", &format!("{path}/detail")).await["quota_set"]["cores"]["in_use"],
        2
    );
    assert_eq!(
        api.get("2.1", &format!("{path}/defaults")).await["quota_set"]["instances"],
        10
    );
    assert_eq!(
        api.member("2.1", "GET", "/os-quota-sets/other", None)
            .await
            .status,
        403
    );
    let low = json!({"quota_set": {"instances": 1}});
    assert_eq!(api.admin("2.1", "PUT", &path, Some(low)).await.status, 400);
    for bad in [
        json!({"quota_set": {"bogus": 1}}),
        json!({"quota_set": {"cores": -2}}),
        json!({"quota_set": 1}),
    ] {
        assert_eq!(
            api.admin("2.60", "PUT", &path, Some(bad.clone())).await.status,
            400,
            "{bad}"
        );
    }
    assert_eq!(api.admin("2.1", "DELETE", &path, None).await.status, 202);
    assert_eq!(api.get("2.1", &path).await["quota_set"]["instances"], 10);
}

#[tokio::test]
async fn groups_hosts_and_zones() {
    let api = Api::running().await;
    let image = api.image().await;
    let new = json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 1}}});
    let made = api.member("2.64", "POST", "/os-server-groups", Some(new)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let group = made.body["server_group"]["id"].as_str().unwrap().to_owned();
    let old = json!({"server_group": {"name": "g", "policies": ["soft-affinity"]}});
    assert_eq!(
        api.member("2.14", "POST", "/os-server-groups", Some(old.clone()))
            .await
            .status,
        400
    );
    assert_eq!(
        api.member("2.15", "POST", "/os-server-groups", Some(old))
            .await
            .status,
        200
    );
    let body = json!({"server": {"name": "in", "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none"},
        "os:scheduler_hints": {"group": group}});
    let made = api.member("2.96", "POST", "/servers", Some(body)).await;
    let id = made.body["server"]["id"].as_str().unwrap().to_owned();
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["server_groups"], json!([group]));
    let shown = api.get("2.96", &format!("/os-server-groups/{group}")).await;
    assert_eq!(shown["server_group"]["members"], json!([id]));
    let old = api.get("2.1", &format!("/os-server-groups/{group}")).await;
    assert_eq!(old["server_group"]["policies"], json!(["anti-affinity"]));
    assert!(old["server_group"].get("project_id").is_none());

    assert_eq!(
        api.member("2.1", "GET", "/os-hypervisors", None).await.status,
        403
    );
    let nodes = api.admin("2.1", "GET", "/os-hypervisors/detail", None).await.body;
    assert_eq!(
        (
            &nodes["hypervisors"][0]["vcpus"],
            &nodes["hypervisors"][0]["running_vms"]
        ),
        (&json!(16), &json!(1))
    );
    let nodes = api
        .admin("2.88", "GET", "/os-hypervisors/detail?with_servers=true", None)
        .await
        .body;
    assert!(nodes["hypervisors"][0].get("vcpus").is_none());
    assert_eq!(nodes["hypervisors"][0]["servers"][0]["uuid"], id);
    let node = nodes["hypervisors"][0]["id"].as_str().unwrap();
    assert_eq!(
        api.admin("2.88", "GET", &format!("/os-hypervisors/{node}"), None)
            .await
            .status,
        200
    );
    assert_eq!(
        api.admin("2.52", "GET", "/os-hypervisors/1", None).await.status,
        200
    );
    assert_eq!(
        api.admin("2.87", "GET", "/os-hypervisors/statistics", None)
            .await
            .body["hypervisor_statistics"]["count"],
        1
    );
    assert_eq!(
        api.admin("2.88", "GET", "/os-hypervisors/statistics", None)
            .await
            .status,
        404
    );
    assert_eq!(
        api.admin("2.53", "GET", "/os-services?binary=nova-compute", None)
            .await
            .body["services"][0]["state"],
        "up"
    );
    let zones = api.get("2.1", "/os-availability-zone").await;
    assert_eq!(zones["availabilityZoneInfo"][0]["zoneName"], "nova");
    assert_eq!(
        api.member("2.1", "GET", "/os-availability-zone/detail", None)
            .await
            .status,
        403
    );
    let usage = api
        .get("2.1", &format!("/os-simple-tenant-usage/{}", api.project))
        .await;
    assert_eq!(usage["tenant_usage"]["server_usages"][0]["instance_id"], id);
    assert_eq!(
        api.member("2.1", "GET", "/os-simple-tenant-usage", None)
            .await
            .status,
        403
    );
}
