//! A hundred runs at once, each of a stand-in for a CLI that streams a megabyte.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;

use crate::Lab;
use crate::figures::{Bar, Part, Promised, table};
use crate::processes::resident_bytes_max;
use crate::system::{Place, fake_agent as prepare, task};

const RUNS: usize = 100;
/// A thousand bytes each, and the line feeds within.
const LINES: u32 = 1000;
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) fn measure(lab: &Lab) -> Result<Part> {
    let rounds = lab.rounds(3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (seconds, resident) = runtime.block_on(runs(rounds))?;
    let row = vec![
        (rounds * RUNS).to_string(),
        format!("{:.1}", (rounds * RUNS) as f64 * f64::from(LINES) / 1000.0),
        format!("{seconds:.1}"),
        format!("{:.1}", resident as f64 / MIB),
    ];
    let mut text = table(
        &[
            "runs",
            "MB streamed",
            "seconds",
            "node's memory at its highest, MiB",
        ],
        &[row],
    );
    text.push_str(
        "\nA hundred owners at once, each in a sandbox of their own, at a control plane, through a node of its own process. \
         What came is compared byte by byte with what was written: none was lost, doubled or out of order.\n",
    );
    Ok(Part {
        title: "A hundred runs at once",
        bars: vec![Bar {
            what: "100 runs at once that stream 1 MB each: the node's memory".to_owned(),
            measured: resident as f64 / MIB,
            digits: 1,
            unit: "MiB",
            promised: Promised::AtMost(100.0),
        }],
        text,
    })
}

async fn runs(rounds: usize) -> Result<(f64, u64)> {
    let name = fake_agent::NAME;
    let memory = (1_u64 << 40).to_string();
    let place = Place::new(
        &[("POOL_MANAGERD_SANDBOXES_MEMORY_MAX_BYTES", &memory)],
        |directory| {
            prepare(directory)?;
            Ok(format!(
                "[[pools]]\nid = \"{name}\"\nkind = \"agent\"\nagent = \"{name}\"\nwarm = {RUNS}\nruns_max = {RUNS}\n"
            ))
        },
    )?;
    place.ready(name).await;
    place.warm(name, RUNS).await?;
    let expect: String = (0..LINES).map(fake_agent::line_of_flood).collect();
    let begun = Instant::now();
    for _ in 0..rounds {
        let body = task(name, &format!("flood {LINES}"));
        let asked: Vec<_> = (0..RUNS).map(|owner| place.ask(owner, &body)).collect();
        for told in join_all(asked).await {
            let told = told.with_context(|| place.log())?;
            ensure!(told.text == expect, "a run did not say what it should have");
        }
    }
    Ok((
        begun.elapsed().as_secs_f64(),
        resident_bytes_max(place.node.program.pid())?,
    ))
}
