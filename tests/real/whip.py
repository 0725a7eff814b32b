"""An encoder that speaks WHIP, for ffmpeg before version 8 does not: `python whip.py URL CLIP`, the key in WHIP_KEY.

Sends the H.264 of a clip as it is, again and again, over loopback alone. Ends with 1 when it is refused or cut off, and
takes its leave (DELETE) on SIGINT.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

import asyncio
import os
import signal
import sys
import time
from fractions import Fraction
from typing import Any
from urllib.parse import urljoin

import aiohttp
import aioice.ice
import av
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

CONNECT_SECONDS = 15
PICTURES_PER_SECOND = 10
TICKS = 90_000


class Refused(Exception):
    """The server does not want this encoder, or no more."""


class Loop(MediaStreamTrack):
    """The coded pictures of a clip in an endless row, at their pace. (MediaPlayer loses it after the first round.)"""

    kind = "video"

    def __init__(self, clip: str):
        super().__init__()
        with av.open(clip) as container:
            self.pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        self.number = 0
        self.began = time.monotonic()

    async def recv(self) -> "av.Packet[Any]":
        due = self.began + self.number / PICTURES_PER_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        packet = av.Packet(self.pictures[self.number % len(self.pictures)])
        packet.pts = self.number * TICKS // PICTURES_PER_SECOND
        packet.time_base = Fraction(1, TICKS)
        self.number += 1
        return packet


def offer_loopback_alone() -> None:
    """The addresses that aioice offers are those of every interface but this one."""
    aioice.ice.get_host_addresses = lambda *args, **kwargs: ["127.0.0.1"]


def watch(peer: RTCPeerConnection) -> tuple[asyncio.Event, asyncio.Event]:
    """Set when the connection stands, and when it is over."""
    stands, is_over = asyncio.Event(), asyncio.Event()

    @peer.on("connectionstatechange")
    def changed() -> None:
        if peer.connectionState == "connected":
            stands.set()
        elif peer.connectionState in ("failed", "closed"):
            is_over.set()

    return stands, is_over


def add_video(peer: RTCPeerConnection, clip: str) -> None:
    transceiver = peer.addTransceiver(Loop(clip), direction="sendonly")
    codecs = RTCRtpSender.getCapabilities("video").codecs
    transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "video/H264"])


async def publish(url: str, clip: str, key: str) -> None:
    """Until SIGINT. Refused."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    add_video(peer, clip)
    stands, is_over = watch(peer)
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, leaving.set)
    await peer.setLocalDescription(await peer.createOffer())
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as client:
        sdp = {"Content-Type": "application/sdp"}
        async with client.post(url, data=peer.localDescription.sdp, headers=headers | sdp) as reply:
            answer = await reply.text()
            if reply.status != 201:
                raise Refused(f"status {reply.status}")
            session_url = urljoin(url, reply.headers["Location"])
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await asyncio.wait_for(stands.wait(), CONNECT_SECONDS)
        print("connected", flush=True)
        waits = [asyncio.create_task(event.wait()) for event in (leaving, is_over)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if is_over.is_set():
            raise Refused("cut off")
        async with client.delete(session_url, headers=headers):
            pass
    await peer.close()


def main() -> None:
    url, clip = sys.argv[1:]
    offer_loopback_alone()
    try:
        asyncio.run(publish(url, clip, os.environ["WHIP_KEY"]))
    except (Refused, TimeoutError, aiohttp.ClientError) as error:
        sys.exit(f"whip: {type(error).__name__} {error}")


if __name__ == "__main__":
    main()
