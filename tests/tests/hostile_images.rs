//! Uploads that were made to harm: each ends as an image that is not usable, and the cloud serves on.

use std::collections::BTreeMap;
use std::time::Duration;

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::host::wait_for;
use allod_tests::http::Client;
use serde_json::json;

/// A qcow2 header (version 3), to be spoiled: 1 MiB, one L1 entry at the second cluster, refcounts at the third.
struct Header {
    backing: Option<&'static str>,
    cluster_bits: u32,
    size: u64,
    encryption: u32,
    l1_size: u32,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u32,
    incompatible: u64,
    l1_entry: u64,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            backing: None,
            cluster_bits: 16,
            size: 1 << 20,
            encryption: 0,
            l1_size: 1,
            l1_offset: 1 << 16,
            refcount_offset: 2 << 16,
            refcount_clusters: 1,
            incompatible: 0,
            l1_entry: 0,
        }
    }
}

impl Header {
    fn file(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let put = |file: &mut Vec<u8>, bytes: &[u8]| file.extend_from_slice(bytes);
        put(&mut file, b"QFI\xfb\0\0\0\x03");
        put(
            &mut file,
            &(if self.backing.is_some() { 512u64 } else { 0 }).to_be_bytes(),
        );
        put(
            &mut file,
            &u32::try_from(self.backing.map_or(0, str::len))
                .unwrap()
                .to_be_bytes(),
        );
        put(&mut file, &self.cluster_bits.to_be_bytes());
        put(&mut file, &self.size.to_be_bytes());
        put(&mut file, &self.encryption.to_be_bytes());
        put(&mut file, &self.l1_size.to_be_bytes());
        put(&mut file, &self.l1_offset.to_be_bytes());
        put(&mut file, &self.refcount_offset.to_be_bytes());
        put(&mut file, &self.refcount_clusters.to_be_bytes());
        put(&mut file, &[0; 12]);
        put(&mut file, &self.incompatible.to_be_bytes());
        put(&mut file, &[0; 16]);
        put(&mut file, &4u32.to_be_bytes());
        put(&mut file, &104u32.to_be_bytes());
        file.resize(512, 0);
        put(&mut file, self.backing.unwrap_or_default().as_bytes());
        file.resize(1 << 16, 0);
        put(&mut file, &self.l1_entry.to_be_bytes());
        file.resize(3 << 16, 0);
        file
    }
}

/// A sparse VMDK extent of so many sectors, none of which is there, with this descriptor.
fn vmdk(sectors: u64, descriptor: &str) -> Vec<u8> {
    let mut file = b"KDMV\x01\0\0\0\x01\0\0\0".to_vec();
    for number in [sectors, 8, 1, 2] {
        file.extend(number.to_le_bytes());
    }
    file.extend(512u32.to_le_bytes());
    for number in [0, 4, 8u64] {
        file.extend(number.to_le_bytes());
    }
    file.extend(b"\0\n \r\n");
    file.resize(512, 0);
    file.extend(descriptor.as_bytes());
    file.resize(8192, 0);
    file
}

/// 4 KiB and a VHD footer of this type (2: fixed, 4: differencing).
fn vhd(kind: u8, size: u64) -> Vec<u8> {
    let mut footer = b"conectix\0\0\0\x02\0\x01\0\0".to_vec();
    footer.resize(48, 0xff);
    footer.extend(size.to_be_bytes());
    footer.extend([0, 0, 0, 0, 0, 0, 0, kind]);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer.extend((!sum).to_be_bytes());
    footer.resize(512, 0);
    [vec![0; 4096], footer].concat()
}

/// Uploads a file and gives the image's id and the status that the upload was answered with.
fn upload(client: &mut Client, name: &str, format: &str, file: &[u8]) -> (String, u16) {
    let body = json!({"name": name, "disk_format": format, "container_format": "bare"});
    let image = client
        .request("POST", "/image/v2/images", Some(&body))
        .unwrap()
        .expect(201)
        .unwrap()
        .json()
        .unwrap();
    let id = image["id"].as_str().unwrap().to_owned();
    let path = format!("/image/v2/images/{id}/file");
    let answer = client
        .send("PUT", &path, &[], Some(("application/octet-stream", file)))
        .unwrap();
    (id, answer.status)
}

/// The status that an image ends in.
fn settled(client: &mut Client, id: &str) -> String {
    let path = format!("/image/v2/images/{id}");
    wait_for("a settled image", Duration::from_secs(60), || {
        let image = client.request("GET", &path, None)?.expect(200)?.json()?;
        let status = image["status"].as_str().unwrap_or_default().to_owned();
        Ok((!["saving", "importing", "uploading"].contains(&status.as_str())).then_some(status))
    })
    .unwrap()
}

#[test]
fn a_hostile_upload_reads_nothing_hangs_nothing_and_fills_nothing() {
    let cloud = Cloud::start(Options::default()).unwrap();
    let mut client = cloud.client().unwrap();
    let token = cloud.field(ADMIN, &["token", "issue"], "id").unwrap();
    client.set_token(&token);

    // The header itself is right: unspoiled, it is an image of zeros.
    let (id, status) = upload(&mut client, "unspoiled", "qcow2", &Header::default().file());
    assert_eq!((status, settled(&mut client, &id).as_str()), (204, "active"));

    let whole = "version=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW 8 SPARSE \"x\"\n";
    for (format, file) in [("vmdk", vmdk(8, whole)), ("vhd", vhd(2, 4096))] {
        let (id, status) = upload(&mut client, "unspoiled", format, &file);
        assert_eq!(
            (status, settled(&mut client, &id).as_str()),
            (204, "active"),
            "{format}"
        );
    }

    let mut hostile: BTreeMap<&str, (&str, Vec<u8>)> = BTreeMap::new();
    let mut add = |name, header: Header| hostile.insert(name, ("qcow2", header.file()));
    add(
        "a backing file of the host's",
        Header {
            backing: Some("/etc/passwd"),
            ..Header::default()
        },
    );
    add(
        "a backing file by URL",
        Header {
            backing: Some("nbd://127.0.0.1/x"),
            ..Header::default()
        },
    );
    add(
        "a backing file in JSON",
        Header {
            backing: Some("json:{\"driver\":\"host_device\"}"),
            ..Header::default()
        },
    );
    add(
        "an external data file",
        Header {
            incompatible: 1 << 2,
            ..Header::default()
        },
    );
    add(
        "an unknown feature",
        Header {
            incompatible: 1 << 40,
            ..Header::default()
        },
    );
    add(
        "encryption",
        Header {
            encryption: 1,
            ..Header::default()
        },
    );
    add(
        "4 EiB",
        Header {
            size: 1 << 62,
            ..Header::default()
        },
    );
    add(
        "no size that fits its table",
        Header {
            size: 1 << 45,
            ..Header::default()
        },
    );
    add(
        "a table beyond the end",
        Header {
            l1_offset: 1 << 50,
            ..Header::default()
        },
    );
    add(
        "clusters of 2^63 bytes",
        Header {
            cluster_bits: 63,
            ..Header::default()
        },
    );
    add(
        "clusters of 1 byte",
        Header {
            cluster_bits: 0,
            ..Header::default()
        },
    );
    add(
        "an entry beyond the end",
        Header {
            l1_entry: (1 << 63) | (1 << 50),
            ..Header::default()
        },
    );
    add(
        "a table that is its own entry",
        Header {
            l1_entry: (1 << 63) | (1 << 16) | 0x1ff,
            ..Header::default()
        },
    );
    hostile.insert(
        "a header alone",
        ("qcow2", Header::default().file()[..60].to_vec()),
    );
    hostile.insert("nothing", ("qcow2", Vec::new()));
    hostile.insert("raw that calls itself qcow2", ("qcow2", vec![0x5a; 1 << 20]));

    let shadow = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                  RW 8 FLAT \"/etc/shadow\" 0\n";
    hostile.insert("a VMDK descriptor of the host's file", ("vmdk", shadow.into()));
    hostile.insert("one that calls itself raw", ("raw", shadow.into()));
    hostile.insert("one inside of an extent", ("vmdk", vmdk(0, shadow)));
    let flat = shadow.replace("monolithicFlat", "monolithicSparse");
    hostile.insert("one that calls itself sparse", ("vmdk", vmdk(8, &flat)));
    let child = flat.replace("FLAT \"/etc/shadow\" 0", "SPARSE \"x\"");
    let child = child.replace(
        "parentCID=ffffffff",
        "parentCID=1\nparentFileNameHint=\"/etc/passwd\"",
    );
    hostile.insert("a VMDK with a parent", ("vmdk", vmdk(8, &child)));
    hostile.insert("a VHD with a parent", ("vhd", vhd(4, 4096)));
    hostile.insert("a VHD of 8 EiB", ("vhd", vhd(2, 1 << 63)));
    hostile.insert("a VHD that calls itself raw", ("raw", vhd(2, 4096)));
    hostile.insert(
        "a VHDX of nothing else",
        ("vhdx", [&b"vhdxfile"[..], &[0; 1 << 20]].concat()),
    );
    for format in ["vmdk", "vhd", "vhdx"] {
        hostile.insert(format, (format, vec![0x5a; 1 << 20]));
    }

    for (name, (format, file)) in &hostile {
        let (id, status) = upload(&mut client, name, format, file);
        assert!(status == 204 || (400..500).contains(&status), "{name}: {status}");
        let settled = settled(&mut client, &id);
        assert!(
            ["queued", "killed", "deactivated"].contains(&settled.as_str()),
            "{name}: {settled}"
        );
        let content = client
            .request("GET", &format!("/image/v2/images/{id}/file"), None)
            .unwrap();
        assert!(
            content.status != 200,
            "{name}: its content can be downloaded: {:?}",
            content.body.get(..60)
        );
    }

    // A table that is larger than it needs to be may be taken or not; it may not be taken into memory.
    let (id, _) = upload(
        &mut client,
        "a table of 32 GiB",
        "qcow2",
        &Header {
            l1_size: u32::MAX,
            ..Header::default()
        }
        .file(),
    );
    settled(&mut client, &id);

    // A qcow2 file that was declared raw is what it was declared: bytes. Its guest may read them, nobody else does.
    let tricky = Header {
        backing: Some("/etc/passwd"),
        ..Header::default()
    };
    let (id, _) = upload(&mut client, "qcow2 that calls itself raw", "raw", &tricky.file());
    if settled(&mut client, &id) == "active" {
        let content = client
            .request("GET", &format!("/image/v2/images/{id}/file"), None)
            .unwrap()
            .expect(200)
            .unwrap();
        assert!(!String::from_utf8_lossy(&content.body).contains("root:x:"));
    }

    assert_eq!(client.request("GET", "/healthz", None).unwrap().status, 200);
    let converters: Vec<_> = cloud
        .processes()
        .into_iter()
        .filter(|p| p.command.contains("convert"))
        .collect();
    assert!(converters.is_empty(), "{converters:?}");
    cloud.end().unwrap();
}
