// The picture of one stream: WebRTC (WHEP) first; HLS when that does not come up.

const UP_MS = 6000; // for WebRTC to connect, and for HLS to show something
const GATHER_MS = 800; // for our addresses: on most networks they are there at once
const LOST_MS = 4000; // a connection that is away may come back so long
const PAUSES_MS = [1000, 2000, 4000, 8000, 15000];
const PLAYED_MS = 10000; // whoever played so long begins with the shortest pause again
const HLS_TYPE = "application/vnd.apple.mpegurl";

/** Why there is no picture, as a sentence; `isFinal` when another way or another time is of no use. */
class NoPicture extends Error {
  constructor(sentence, isFinal = false) {
    super(sentence);
    this.isFinal = isFinal;
  }
}

/** Plays the stream of these URLs in `screen`, from start() to stop(); what goes on stands in `screen.dataset.state`. */
export class Player {
  #screen;
  #urls;
  #title;
  #controls;
  #caption;
  #video = null;
  #sound = { muted: true, volume: 1 }; // as it was when a picture came last
  #running = null; // an AbortController while it plays or tries to

  constructor(screen, { webrtc, hls, readPolicy = "public", title, controls = false }) {
    this.#screen = screen;
    this.#urls = { webrtc, hls };
    this.#title = title;
    this.#controls = controls;
    this.#caption = document.createElement("p");
    screen.append(this.#caption);
    this.refusal =
      readPolicy === "deny"
        ? "No picture: nobody may watch (READ_POLICY=deny)."
        : readPolicy === "secret"
          ? "No picture here: the media server asks for READ_SECRET."
          : !webrtc && !hls
            ? "No picture: WebRTC and HLS are switched off."
            : location.protocol === "https:" && ![webrtc, hls].some((url) => url?.startsWith("https:"))
              ? "No picture: this page came by https, and the media server's URLs begin with http."
              : null;
    this.#show("idle", this.refusal ?? "");
  }

  get isRunning() {
    return this.#running !== null;
  }

  /** Begins to play, unless it does. */
  start() {
    if (this.#running || this.refusal) return;
    this.#running = new AbortController();
    this.#run(this.#running.signal);
  }

  /** Ends all of it, and says why nothing plays; the last picture stays, as a still. */
  stop(sentence = "") {
    if (this.#running) {
      this.#keepStill();
      this.#running.abort();
      this.#running = null;
      this.#clear();
    }
    this.#show("idle", this.refusal ?? sentence);
  }

  async #run(signal) {
    for (let tries = 0; !signal.aborted; tries++) {
      this.#show("connecting", "Connecting…");
      const begun = performance.now();
      let why = "";
      for (const way of this.#ways()) {
        try {
          await way(signal); // until it is over
          why = "the connection is lost";
        } catch (error) {
          why = error instanceof NoPicture ? error.message : "the media server cannot be reached from this browser";
          if (error.isFinal) tries = PAUSES_MS.length;
        }
        if (signal.aborted) return;
        this.#keepStill();
        this.#clear();
        if (why === "the connection is lost") break;
      }
      if (performance.now() - begun > PLAYED_MS) tries = 0;
      this.#show("waiting", `No picture: ${why}. Trying again.`);
      const pause = PAUSES_MS[Math.min(tries, PAUSES_MS.length - 1)];
      await wait(pause * (0.75 + Math.random() / 2), signal);
    }
  }

  #ways() {
    const ways = [];
    if (this.#urls.webrtc) ways.push((signal) => this.#whep(signal));
    if (this.#urls.hls) ways.push((signal) => this.#hls(signal));
    return ways;
  }

  async #whep(outer) {
    const over = new AbortController();
    const signal = AbortSignal.any([outer, over.signal]);
    const peer = new RTCPeerConnection({ iceServers: await iceServers(this.#urls.webrtc, signal) });
    let session = null;
    try {
      const media = new MediaStream();
      peer.addTransceiver("video", { direction: "recvonly" });
      peer.addTransceiver("audio", { direction: "recvonly" });
      peer.addEventListener("track", (event) => media.addTrack(event.track));
      await peer.setLocalDescription(await peer.createOffer());
      await gathered(peer, signal);
      const answer = await fetch(this.#urls.webrtc, {
        method: "POST",
        headers: { "Content-Type": "application/sdp" },
        body: peer.localDescription.sdp,
        signal: AbortSignal.any([signal, AbortSignal.timeout(UP_MS)]),
      });
      if (!answer.ok) throw refused(answer.status);
      const place = answer.headers.get("Location");
      session = place && new URL(place, this.#urls.webrtc).href;
      await peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
      if (signal.aborted) return;
      await connected(peer, signal);
      const video = this.#addVideo();
      video.srcObject = media;
      this.#show("playing", "No picture yet");
      let hasPlayed = false;
      video.addEventListener("playing", () => ((hasPlayed = true), this.#show("playing", "")), { signal });
      video.play().catch(() => {});
      await lost(peer, signal, () => (hasPlayed ? LOST_MS : 0));
      // MediaMTX takes the connection and ends it when H264 has B-frames, as OBS and x264 send by default.
      if (!hasPlayed && !signal.aborted) throw new NoPicture("WebRTC brings none of this stream");
    } finally {
      over.abort();
      const hears = peer.connectionState === "connected"; // then the other side is told by the connection itself
      peer.close();
      if (session && !hears) fetch(session, { method: "DELETE", keepalive: true }).catch(() => {});
    }
  }

  async #hls(signal) {
    const list = await fetch(this.#urls.hls, { signal: AbortSignal.any([signal, AbortSignal.timeout(UP_MS)]) });
    if (!list.ok) throw refused(list.status);
    if (document.createElement("video").canPlayType(HLS_TYPE)) {
      try {
        return await this.#nativeHls(signal);
      } catch {
        this.#clear();
      }
    }
    if (!signal.aborted) await this.#page(signal);
  }

  async #nativeHls(signal) {
    const video = this.#addVideo();
    video.src = this.#urls.hls;
    const failed = new Promise((_, no) => {
      video.addEventListener("error", () => no(new NoPicture("the browser cannot play it")), { signal });
    });
    failed.catch(() => {});
    const plays = new Promise((yes) => video.addEventListener("playing", yes, { once: true, signal }));
    video.play().catch(() => {});
    const late = wait(UP_MS, signal).then(() => {
      throw new NoPicture("HLS shows nothing");
    });
    late.catch(() => {});
    await Promise.race([plays, failed, late]);
    this.#show("playing", "HLS: some seconds late");
    await Promise.race([failed.catch(() => {}), ended(video, signal), aborted(signal)]);
  }

  // The media server's own page, which brings a player of HLS for browsers that have none; what it does is its affair.
  async #page(signal) {
    const url = new URL(this.#urls.hls);
    url.pathname = url.pathname.replace(/index\.m3u8$/, "");
    for (const [name, value] of [["muted", "true"], ["autoplay", "true"], ["playsinline", "true"], ["controls", `${this.#controls}`]]) {
      url.searchParams.set(name, value);
    }
    const frame = document.createElement("iframe");
    frame.title = `Picture of ${this.#title}`;
    frame.allow = "autoplay; fullscreen";
    frame.referrerPolicy = "no-referrer";
    frame.sandbox = "allow-scripts allow-same-origin";
    if (!this.#controls) frame.tabIndex = -1;
    frame.src = url.href;
    this.#screen.prepend(frame);
    this.#show("playing", "HLS: some seconds late");
    await aborted(signal);
  }

  #addVideo() {
    const video = document.createElement("video");
    Object.assign(video, this.#sound);
    video.autoplay = true;
    video.playsInline = true;
    video.controls = this.#controls;
    video.disablePictureInPicture = !this.#controls;
    video.setAttribute("aria-label", `Picture of ${this.#title}`);
    if (!this.#controls) video.tabIndex = -1;
    this.#screen.insertBefore(video, this.#caption);
    this.#video = video;
    return video;
  }

  #keepStill() {
    const video = this.#video;
    if (!video?.videoWidth) return;
    const still = this.#screen.querySelector("canvas") ?? document.createElement("canvas");
    still.width = this.#screen.clientWidth || video.videoWidth;
    still.height = Math.round((still.width * video.videoHeight) / video.videoWidth);
    still.getContext("2d").drawImage(video, 0, 0, still.width, still.height);
    this.#screen.prepend(still);
  }

  #clear() {
    if (this.#video) this.#sound = { muted: this.#video.muted, volume: this.#video.volume };
    for (const old of this.#screen.querySelectorAll("video, iframe")) {
      old.srcObject = null;
      old.removeAttribute("src");
      old.remove();
    }
    this.#video = null;
  }

  #show(state, sentence) {
    if (this.#screen.dataset.state !== state) this.#screen.dataset.state = state;
    if (this.#caption.textContent !== sentence) this.#caption.textContent = sentence;
  }
}

function refused(status) {
  if (status === 401 || status === 403) return new NoPicture("the media server lets nobody watch without a credential", true);
  if (status === 404) return new NoPicture("the media server does not have it now");
  return new NoPicture(`the media server answers ${status}`);
}

// MediaMTX names the STUN and TURN servers of its configuration in the Link header.
async function iceServers(url, signal) {
  try {
    const answer = await fetch(url, { method: "OPTIONS", signal: AbortSignal.any([signal, AbortSignal.timeout(UP_MS)]) });
    return [...(answer.headers.get("Link") ?? "").matchAll(/<([^>]+)>; rel="ice-server"([^,]*)/g)].map(([, urls, more]) => ({
      urls,
      username: parameter(more, "username"),
      credential: parameter(more, "credential"),
    }));
  } catch (error) {
    if (signal.aborted) throw error;
    return []; // the POST tells what is wrong
  }
}

function parameter(text, name) {
  const found = new RegExp(`${name}="((?:[^"\\\\]|\\\\.)*)"`).exec(text);
  return found ? found[1].replace(/\\(.)/g, "$1") : "";
}

function wait(ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}

function aborted(signal) {
  return new Promise((done) => {
    if (signal.aborted) done();
    else signal.addEventListener("abort", done, { once: true });
  });
}

function ended(video, signal) {
  return new Promise((done) => video.addEventListener("ended", done, { once: true, signal }));
}

function gathered(peer, signal) {
  const complete = new Promise((done) => {
    const look = () => peer.iceGatheringState === "complete" && done();
    peer.addEventListener("icegatheringstatechange", look, { signal });
    look();
  });
  return Promise.race([complete, wait(GATHER_MS, signal)]);
}

function connected(peer, signal) {
  const up = new Promise((yes, no) => {
    const look = () => {
      if (peer.connectionState === "connected") yes();
      if (peer.connectionState === "failed" || peer.connectionState === "closed") no(new NoPicture("WebRTC does not get through"));
    };
    peer.addEventListener("connectionstatechange", look, { signal });
    look();
  });
  const late = wait(UP_MS, signal).then(() => {
    if (!signal.aborted && peer.connectionState !== "connected") throw new NoPicture("WebRTC does not get through");
  });
  late.catch(() => {});
  return Promise.race([up, late]);
}

// Until the connection is gone for good; `patience` gives how long it may be away.
function lost(peer, signal, patience) {
  return new Promise((done) => {
    let timer = 0;
    const look = () => {
      clearTimeout(timer);
      if (peer.connectionState === "failed" || peer.connectionState === "closed") done();
      if (peer.connectionState === "disconnected") timer = setTimeout(done, patience());
    };
    peer.addEventListener("connectionstatechange", look, { signal });
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
    look();
  });
}
