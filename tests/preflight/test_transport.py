"""What NCCL says it chose is read from its log. The lines have the form that NCCL 2.18 to 2.28 writes."""

from megasink.preflight.transport import transports

LOG = """\
node7:401:401 [0] NCCL INFO cudaDriverVersion 12080
node7:401:512 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [2]mlx5_4:1/RoCE [RO]; OOB eth0:10.0.0.7<0>
node7:401:512 [0] NCCL INFO Using network IB
node7:401:512 [0] NCCL INFO NVLS multicast support is available on dev 0 (NVLS_NCHANNELS 16)
node7:401:512 [0] NCCL INFO Channel 00/0 : 8[0] -> 9[1] via P2P/CUMEM
node7:401:512 [0] NCCL INFO Channel 01/0 : 8[0] -> 9[1] via P2P/CUMEM/read
node7:401:512 [0] NCCL INFO Channel 00/0 : 8[0] -> 0[0] [send] via NET/IB/0/GDRDMA
node7:401:512 [0] NCCL INFO Channel 02/0 : 0[0] -> 8[0] [receive] via NET/IB/2(3)/GDRDMA
node7:401:512 [0] NCCL INFO 24 coll channels, 24 collnet channels, 16 nvls channels, 32 p2p channels
"""


def test_kinds_of_channel_without_device_numbers():
    assert transports(LOG) == {
        "within": "NVLS + P2P/CUMEM + P2P/CUMEM/read",
        "between": "NET/IB/GDRDMA",
        "network devices": "3",
    }


def test_sockets_shared_memory_and_no_multicast():
    text = """\
n1:9:9 [1] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>
n1:9:9 [1] NCCL INFO Channel 00/0 : 1[1] -> 2[0] [send] via NET/Socket/0
n1:9:9 [1] NCCL INFO Channel 00 : 1[1] -> 0[0] via SHM/direct/direct
n1:9:9 [1] NCCL INFO 2 coll channels, 0 collnet channels, 0 nvls channels, 2 p2p channels
"""
    assert transports(text) == {"within": "SHM/direct/direct", "between": "NET/Socket", "network devices": "1"}


def test_nothing_said_is_nothing_known():
    assert transports("") == {}
