"""What is wanted, what the state folder says, what the target has and what was promised to callers are one."""

from node import NATIVE, TARGET, Astray, call, containers, rpc, same, target_pids, volume_sockets, wanted_volumes


def all_is_as_promised(volumes):
    """Looked at from outside first: the agent mends what it is asked for."""
    wanted = wanted_volumes()
    for volume in volumes:
        if volume.promised not in (None, volume.name in wanted):
            raise Astray(f'{volume.name} was promised to be {"there" if volume.promised else "gone"}, and is not')
    same('targets', len(target_pids()), 1)
    bdevs, controllers = rpc('bdev_get_bdevs', 'vhost_get_controllers')
    same('bdevs', sorted(it['name'] for it in bdevs), sorted(spec['bdev'] for spec in wanted.values()))
    same('controllers', sorted(it['ctrlr'] for it in controllers), sorted(wanted))
    same('sockets', sorted(volume_sockets()), sorted(wanted))
    same('containers', containers(), [f'/{TARGET} running'])
    same('the target', call('GET', NATIVE)[1]['health']['state'], 'serving')
    told = call('GET', f'{NATIVE}/volumes')[1]['volumes']
    same('the volumes', {it['name']: it['state'] for it in told}, {name: 'serving' for name in wanted})
