//! A tenant with a project, a user and a network, made through the `openstack` client.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::cloud::{ADMIN, Cloud};
use crate::paths;
use crate::run::capture;
use crate::ssh::Key;

/// How long a guest may take from the start of its machine to its first login, on a busy machine without KVM.
pub const BOOT: Duration = Duration::from_secs(120);

/// The image that `prepare` uploads.
pub const IMAGE: &str = "allod-guest";

/// The small flavor that `prepare` makes: one vCPU, 256 MiB, a disk of 1 GiB.
pub const FLAVOR: &str = "tiny";

/// Uploads the guest image and makes the small flavor, for all tenants.
pub fn prepare(cloud: &Cloud) -> Result<()> {
    upload(cloud, IMAGE, "minimal")?;
    cloud.openstack(
        ADMIN,
        &[
            "flavor", "create", "--vcpus", "1", "--ram", "256", "--disk", "1", FLAVOR,
        ],
    )?;
    Ok(())
}

/// Uploads the guest image for all, with the properties that SCS-0102 wants of public images.
pub fn upload(cloud: &Cloud, name: &str, purpose: &str) -> Result<()> {
    let file = paths::guest_image();
    let file = fs::canonicalize(&file).with_context(|| {
        format!(
            "there is no {}; make it by `cargo xtask guest-image`",
            file.display()
        )
    })?;
    let file = file.to_str().context("path is not UTF-8")?;
    let built = fs::metadata(file)?
        .modified()?
        .duration_since(UNIX_EPOCH)?
        .as_secs();
    let built = capture("date", &["--utc", "--date", &format!("@{built}"), "+%Y-%m-%d"])?;
    let properties = [
        "architecture=x86_64",
        "os_distro=debian",
        "os_version=12",
        &format!("os_purpose={purpose}"),
        "hw_disk_bus=virtio",
        "hw_rng_model=virtio",
        &format!("image_build_date={}", built.trim()),
        &format!("image_original_user={}", crate::ssh::USER),
        "image_source=private",
        "image_description=A small Debian for tests",
        "replace_frequency=never",
        "provided_until=none",
        "uuid_validity=none",
    ];
    #[rustfmt::skip]
    let mut arguments = vec!["image", "create", "--disk-format", "qcow2", "--container-format", "bare", "--public",
        "--min-disk", "1", "--min-ram", "128", "--file", file];
    for property in &properties {
        arguments.extend(["--property", property]);
    }
    arguments.push(name);
    cloud.openstack(ADMIN, &arguments)?;
    Ok(())
}

/// A tenant, known to `openstack` by its name.
#[derive(Debug)]
pub struct Tenant<'a> {
    /// Its cloud.
    pub cloud: &'a Cloud,
    /// The name of its project, its user, and of all that it owns.
    pub name: String,
    /// What it logs in to its guests with.
    pub key: Key,
}

impl<'a> Tenant<'a> {
    /// Makes project, user and key pair.
    pub fn new(cloud: &'a Cloud, name: &str) -> Result<Self> {
        let password = format!("password of {name}");
        cloud.openstack(ADMIN, &["project", "create", name])?;
        cloud.openstack(
            ADMIN,
            &["user", "create", "--project", name, "--password", &password, name],
        )?;
        cloud.openstack(
            ADMIN,
            &["role", "add", "--project", name, "--user", name, "member"],
        )?;
        cloud.add_credentials(name, name, &password, name)?;
        let key = Key::generate(cloud.folder(), &format!("{name}-key"))?;
        let public = key.public();
        let tenant = Self {
            cloud,
            name: name.to_owned(),
            key,
        };
        tenant.run(&[
            "keypair",
            "create",
            "--public-key",
            public.to_str().context("path is not UTF-8")?,
            name,
        ])?;
        Ok(tenant)
    }

    /// Runs `openstack` as this tenant.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.cloud.openstack(&self.name, arguments)
    }

    /// Runs `openstack … -f json` as this tenant and gives one field.
    pub fn field(&self, arguments: &[&str], field: &str) -> Result<String> {
        self.cloud.field(&self.name, arguments, field)
    }

    /// Makes a network with this range behind a router to `ext-net`, all named after the tenant.
    pub fn network(&self, range: &str) -> Result<()> {
        let name = self.name.as_str();
        self.run(&["network", "create", name])?;
        self.run(&[
            "subnet",
            "create",
            "--network",
            name,
            "--subnet-range",
            range,
            name,
        ])?;
        self.run(&["router", "create", name])?;
        self.run(&["router", "set", "--external-gateway", "ext-net", name])?;
        self.run(&["router", "add", "subnet", name, name])?;
        Ok(())
    }

    /// Makes a security group named after the tenant that lets SSH in.
    pub fn ssh_group(&self) -> Result<()> {
        let name = self.name.as_str();
        self.run(&["security", "group", "create", name])?;
        self.run(&[
            "security",
            "group",
            "rule",
            "create",
            "--protocol",
            "tcp",
            "--dst-port",
            "22",
            name,
        ])?;
        Ok(())
    }

    /// Starts a server on the tenant's network with these security groups and further arguments; gives its id.
    pub fn server(&self, server: &str, groups: &[&str], more: &[&str]) -> Result<String> {
        let mut arguments = vec!["server", "create", "--wait", "--flavor", FLAVOR, "--image", IMAGE];
        arguments.extend(["--key-name", &self.name]);
        for group in groups {
            arguments.extend(["--security-group", group]);
        }
        arguments.extend(more);
        arguments.push(server);
        self.field(&arguments, "id")
    }

    /// Gives a server a floating IP.
    pub fn floating_ip(&self, server: &str) -> Result<String> {
        let address = self.field(&["floating", "ip", "create", "ext-net"], "floating_ip_address")?;
        self.run(&["server", "add", "floating", "ip", server, &address])?;
        Ok(address)
    }

    /// Waits until a guest lets this tenant in; a failure shows its console.
    pub fn wait_for_ssh(&self, server: &str, address: &str) -> Result<()> {
        self.cloud
            .wait_for_ssh(&self.key, address, BOOT)
            .with_context(|| {
                let log = self
                    .cloud
                    .console_log(&self.name, server)
                    .unwrap_or_else(|e| format!("{e:#}"));
                format!("--- console of {server} ---\n{}\n---", crate::run::tail(&log, 40))
            })
    }

    /// Runs a script in a guest of this tenant.
    pub fn ssh(&self, address: &str, script: &str) -> Result<String> {
        self.cloud.ssh(&self.key, address, script)
    }

    /// The id that the guest's kernel drew when it booted.
    pub fn boot_id(&self, address: &str) -> Result<String> {
        Ok(self
            .ssh(address, "cat /proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned())
    }

    /// Writes a file that a command can name.
    pub fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.cloud.folder().join(format!("{}-{name}", self.name));
        fs::write(&path, content)?;
        path_text(&path)
    }
}

fn path_text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("path is not UTF-8")?.to_owned())
}
