#![allow(clippy::unwrap_used)]
mod support;
use std::{fs, time::Instant};
use backup_repository::*;
use support::*;
#[test]
#[ignore]
fn job_child() { println!(); let _ = run_job_child(); std::process::exit(0); }
fn request(test: &TestRepository, task: JobTask) -> JobRequest {
    JobRequest { provider: provider(test.directory.path()), bucket: BUCKET.to_owned(), root: test.root.clone(),
        identity: test.identity.clone(), key: test.key.clone(),
        cache: Some(CacheSettings { directory: test.path("cache"), limit_bytes: 100_000_000 }),
        memory_limit_bytes: None, task }
}
async fn run(name: &str, request: &JobRequest) -> JobResult {
    let started = Instant::now();
    let mut job = JobProcess::spawn(&std::env::current_exe().unwrap(), ["--ignored","--exact","job_child","--nocapture"], request).unwrap();
    let pid = job.process_id().unwrap();
    let poll = std::thread::spawn(move || { let mut peak=0u64; let mut data=0u64; loop {
        let Ok(s)=fs::read_to_string(format!("/proc/{pid}/status")) else {break};
        let get=|k:&str| s.lines().find(|l|l.starts_with(k)).and_then(|l|l.split_whitespace().nth(1)).and_then(|v|v.parse::<u64>().ok());
        let Some(h)=get("VmHWM:") else {break}; peak=peak.max(h); data=data.max(get("VmData:").unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(5)); } (peak/1024,data/1024) });
    loop { match job.next_event().await.unwrap() {
        JobEvent::Progress(_) => {}
        JobEvent::Finished(r) => { let t=started.elapsed().as_secs_f64(); let (p,d)=poll.join().unwrap(); println!("{name}: {t:.2}s peak {p} MB data {d} MB {r:?}"); return r; }
        e => panic!("{e:?}") } }
}
fn restic(test: &TestRepository, repo: &std::path::Path, args: &[&str], name: &str) {
    let started = Instant::now();
    let out = std::process::Command::new("/usr/bin/time").args(["-v","restic","--repo"]).arg(repo).args(args).env("RESTIC_PASSWORD","x").env("RESTIC_CACHE_DIR", test.path("rcache")).output().unwrap();
    let e=String::from_utf8_lossy(&out.stderr); 
    println!("restic {name}: {:.2}s {}", started.elapsed().as_secs_f64(), e.lines().find(|l|l.contains("Maximum resident")).unwrap_or(""));
}
#[tokio::test(flavor="multi_thread")]
async fn measure() {
    let test = TestRepository::new().await;
    let p = test.project();
    for d in 0..200 { let dir=p.join(format!("d{d}")); fs::create_dir(&dir).unwrap();
        for f in 0..100 { fs::write(dir.join(f.to_string()), noise(20_000, d*1000+f+1)).unwrap(); } }
    for f in 0..6 { fs::write(p.join(format!("big{f}")), noise(100_000_000, 77+f)).unwrap(); }
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let JobResult::Backup(b) = run("first", &request(&test, JobTask::Backup(test.request(None)))).await else {panic!()};
    let JobResult::Backup(b2) = run("unchanged", &request(&test, JobTask::Backup(test.request(Some(b.snapshot))))).await else {panic!()};
    for d in 0..2 { for f in 0..100 { fs::write(p.join(format!("d{d}/{f}")), noise(20_000, 5_000_000+d*1000+f)).unwrap(); } }
    run("1%", &request(&test, JobTask::Backup(test.request(Some(b2.snapshot))))).await;
    run("restore", &request(&test, JobTask::Restore(RestoreRequest{snapshot:b.snapshot, target:test.whole("restored")}))).await;
    run("check", &request(&test, JobTask::Check{read_data:true})).await;
    if std::env::var("R").is_ok() {
    let r = test.path("resticrepo");
    restic(&test,&r,&["init","--repository-version","2"],"init");
    let src=p.display().to_string();
    restic(&test,&r,&["backup",&src],"first"); restic(&test,&r,&["backup",&src],"unchanged");
    let t=test.path("rr").display().to_string();
    restic(&test,&r,&["restore","latest","--target",&t],"restore");
    }
}
