//! Prints what a source sends: `watch DIR`, or `watch --kubeconfig FILE`.

use std::path::PathBuf;

use tokio::sync::mpsc::channel;
use weir_source::{Update, manifests};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (sender, mut updates) = channel(16);
    match &arguments[..] {
        [option, file] if option == "--kubeconfig" => {
            let options =
                weir_source::cluster::Options { kubeconfig: Some(PathBuf::from(file)), context: None };
            tokio::spawn(async move {
                if let Err(error) = weir_source::cluster::watch(options, sender).await {
                    eprintln!("{error}");
                }
            });
        }
        [dir] => manifests::watch(PathBuf::from(dir), sender)?,
        _ => return Err("give a folder, or --kubeconfig FILE".into()),
    }
    let begin = std::time::Instant::now();
    while let Some(update) = updates.recv().await {
        print!("{:>8.3} s  ", begin.elapsed().as_secs_f64());
        match update {
            Update::Problem(problem) => println!("problem: {problem}"),
            Update::Batch { events, synced } => {
                println!("{} events, synced: {synced}", events.len());
                events.iter().for_each(|event| println!("            {event:?}"));
            }
        }
    }
    Ok(())
}
