//! What a sandbox takes that nobody has.

use anyhow::{Result, ensure};

use crate::Lab;
use crate::figures::{Bar, Part, Promised, table};
use crate::processes::{proportional_bytes, sandboxes};
use crate::system::{Place, fake_agent as prepare};

/// Sandboxes without an owner.
const WARM: usize = 50;
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) fn measure(_: &Lab) -> Result<Part> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let warm = runtime.block_on(warm())?;
    let mib = |bytes: f64| format!("{:.2}", bytes / MIB);
    let row = vec![
        WARM.to_string(),
        mib(warm.driver),
        mib(warm.init),
        mib(warm.files),
        mib(warm.node),
    ];
    let heading = [
        "warm sandboxes",
        "the driver's own, MiB each",
        "init",
        "files",
        "in the node",
    ];
    let own = warm.init + warm.files + warm.node;
    let mut text = table(&heading, &[row]);
    text.push_str(
        "\nProportional set size: memory that processes share counts in parts. The driver's own is `bwrap`; in the node is what \
         it has more than with one sandbox.\n",
    );
    Ok(Part {
        title: "Memory of a warm sandbox",
        bars: vec![Bar {
            what: "an idle warm sandbox, beyond the driver's own memory".to_owned(),
            measured: own / MIB,
            digits: 2,
            unit: "MiB",
            promised: Promised::AtMost(3.0),
        }],
        text,
    })
}

/// Bytes of one sandbox.
struct Warm {
    driver: f64,
    init: f64,
    files: f64,
    node: f64,
}

async fn warm() -> Result<Warm> {
    let name = fake_agent::NAME;
    let pools = |warm: usize| {
        format!("[[pools]]\nid = \"{name}\"\nkind = \"agent\"\nagent = \"{name}\"\nwarm = {warm}\n")
    };
    let empty = Place::new(&[], |directory| prepare(directory).map(|()| pools(1)))?;
    empty.ready(name).await;
    empty.warm(name, 1).await?;
    let node_of_one = proportional_bytes(empty.node.program.pid())?;
    drop(empty);
    let place = Place::new(&[], |directory| prepare(directory).map(|()| pools(WARM)))?;
    place.ready(name).await;
    place.warm(name, WARM).await?;
    let node = proportional_bytes(place.node.program.pid())?;
    let found = sandboxes(&place.directory.join("sandboxes"))?;
    ensure!(found.len() == WARM, "{} sandboxes", found.len());
    let (mut driver, mut init, mut files) = (0, 0, 0);
    for one in &found {
        ensure!(one.others()?.is_empty(), "something runs in a warm sandbox");
        driver += proportional_bytes(one.outer)?;
        init += proportional_bytes(one.init)?;
        files += one.files_bytes();
    }
    let each = |bytes: u64| bytes as f64 / WARM as f64;
    Ok(Warm {
        driver: each(driver),
        init: each(init),
        files: each(files),
        node: each(node.saturating_sub(node_of_one)),
    })
}
