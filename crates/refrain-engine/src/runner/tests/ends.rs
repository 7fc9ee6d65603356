//! How the engine ends: told to, left alone, by a bug, by a device that is lost or hangs.

use super::*;

#[test]
fn shutdown_finishes_what_was_accepted() {
    let engine = start(config(1, 16));
    let streams: Vec<_> = (1..4).map(|token| engine.submit(greedy(vec![token; 70], 30)).unwrap()).collect();
    engine.shutdown();
    assert_eq!(engine.submit(greedy(vec![1], 5)).unwrap_err(), SubmitError::ShuttingDown);
    assert!(!engine.is_accepting());
    for (token, stream) in (1..4).zip(streams) {
        assert_eq!(answer(stream).tokens, greedy_reference(&[token; 70], 30));
    }
    wait_for_end(&engine);
}

#[test]
fn stop_fails_what_is_left() {
    let (engine, steps, permit) = start_gated(config(1, 16));
    let streams: Vec<_> = (1..4).map(|token| engine.submit(greedy(vec![token; 70], 1000)).unwrap()).collect();
    steps.recv().unwrap();
    engine.stop();
    drop((permit, steps));
    for stream in streams {
        assert_eq!(answer(stream).end, Some(Err(RequestFailure::ShuttingDown)));
    }
    wait_for_end(&engine);
    assert_eq!(engine.submit(greedy(vec![1], 5)).unwrap_err(), SubmitError::ShuttingDown);
    nothing_is_held(&engine);
}

#[test]
fn the_thread_ends_when_nobody_is_left() {
    let engine = start(config(1, 16));
    let watcher = engine.clone();
    let stream = engine.submit(greedy(vec![1; 5], 1000)).unwrap();
    let life = watcher.life_for_tests();
    drop((engine, watcher, stream));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let ended = async { life.clone().wait_for(|life| *life != crate::shared::Life::Running).await.map(|_| ()) };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), ended).await }).unwrap().unwrap();
}

#[test]
fn a_dead_engine_says_so_and_every_stream_ends() {
    let (engine, steps, permit) = start_gated(config(1, 16));
    let streams = [1, 2].map(|_| engine.submit(greedy(vec![KILLS; 5], 5)).unwrap());
    drop((permit, steps));
    for stream in streams {
        assert_eq!(answer(stream).end, Some(Err(RequestFailure::EngineDied)));
    }
    wait_for_end(&engine);
    assert!(!engine.is_accepting());
    assert_eq!(engine.submit(greedy(vec![1], 5)).unwrap_err(), SubmitError::NotRunning);
}

/// The second request waits, so no step of it fails; nobody would ever compute it.
#[test]
fn a_lost_device_ends_every_request_and_the_engine() {
    let (engine, steps, permit) = start_gated(config(1, 16));
    let streams = [LOSES, 1].map(|token| engine.submit(greedy(vec![token; 5], 5)).unwrap());
    drop((permit, steps));
    for stream in streams {
        let end = answer(stream).end;
        let Some(Err(RequestFailure::Device(why))) = end else { panic!("{end:?}") };
        assert!(why.contains("hash:0 is lost") && why.contains("restart"), "{why}");
    }
    wait_for_end(&engine);
    assert!(engine.is_dead());
    nothing_is_held(&engine);
    assert_eq!(engine.submit(greedy(vec![1], 5)).unwrap_err(), SubmitError::NotRunning);
}

#[tokio::test]
async fn requests_of_an_abandoned_engine_fail_and_nobody_waits_for_its_thread() {
    let (engine, steps, permits) = start_gated(config(2, 64));
    let mut first = engine.submit(greedy(vec![1, 2], 3)).unwrap();
    steps.recv().unwrap();
    let mut second = engine.submit(greedy(vec![1], 3)).unwrap();
    engine.abandon();
    for stream in [&mut first, &mut second] {
        assert_eq!(stream.next().await, Some(Event::Failed(RequestFailure::EngineDied)));
        assert_eq!(stream.next().await, None);
    }
    engine.stop_and_join();
    assert!(engine.is_dead() && engine.is_abandoned() && !engine.is_accepting());
    assert!(matches!(engine.submit(greedy(vec![1], 3)), Err(SubmitError::NotRunning | SubmitError::ShuttingDown)));
    // Whatever becomes of the thread later: it stays dead.
    drop(permits);
    engine.join();
    assert!(engine.is_dead());
}
